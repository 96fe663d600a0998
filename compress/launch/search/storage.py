"""The database of a search: a file next to its trials, or a PostgreSQL that several machines reach."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from compress.utils.errors import UserError

log = logging.getLogger("compress")

FILE = "study.db"
BEAT_S, GRACE_S = 30, 120  # seconds between heartbeats of a trial; after so long without one, its process is dead

_ATTEMPTS = 5  # two processes that create the tables at the same moment make each other fail


def storage_url(storage: str | None, folder: Path) -> URL:
    """Returns the address of the study's database. Raises UserError for what is no such address."""
    if storage is None:
        return URL.create("sqlite", database=str((folder / FILE).absolute()))
    try:
        url = make_url(storage)
    except ArgumentError as error:
        raise UserError(
            "hydra.sweeper.storage with no address of a database",  # it may hold a password
            "null, sqlite:///FILE or postgresql://USER@HOST/NAME",
            "mend it",
        ) from error
    if url.password:
        log.warning(
            "hydra.sweeper.storage holds a password, and Hydra writes the command line into every trial's folder: "
            "leave it out and set PGPASSWORD, or write it into ~/.pgpass"
        )
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


@contextmanager
def open_storage(url: URL) -> Iterator[RDBStorage]:
    """Opens the database and creates Optuna's tables. Raises UserError where it cannot be reached."""
    storage = _open(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open(url: URL) -> RDBStorage:
    sqlite = url.get_backend_name() == "sqlite"
    # A server may close a connection that is silent during a long trial; SQLite waits 5 s for a lock by default.
    options = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    if sqlite and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    failure: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            with silence_heartbeat_warnings():
                return RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs=options,
                    heartbeat_interval=BEAT_S,
                    grace_period=GRACE_S,
                )
        except ImportError as error:
            raise UserError(
                f"hydra.sweeper.storage={url}, for which a driver is missing: {error}",
                "a database whose driver is installed",
                'run pip install -e ".[search]", which brings that of PostgreSQL',
            ) from error
        except SQLAlchemyError as error:
            failure = error
            if not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                break
            time.sleep(0.5)
    cause = str(failure).splitlines()[0]
    raise UserError(
        f"hydra.sweeper.storage={url}: {cause}", "a database that can be reached", "start it, or mend the address"
    ) from failure


@contextmanager
def silence_heartbeat_warnings() -> Iterator[None]:
    """Hides Optuna's warnings about its heartbeat: that it is experimental, and made for `Study.optimize`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with Study.optimize")
        yield
