"""The search is an extra: without Optuna its tests skip."""

import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec

import pytest


def pytest_pycollect_makemodule() -> None:
    """Before a module is imported, which would fail."""
    if find_spec("optuna") is None:
        pytest.skip("the extra search is not installed")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No test leaves a connection open."""
    yield
    from tests.launch.search.fake import DATABASES

    DATABASES.close()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No test loses power: SQLite need not wait for the disk."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: object, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)
