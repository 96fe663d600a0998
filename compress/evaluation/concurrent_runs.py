"""Counts other runs on this machine: they share its cores, memory and counters, so figures have to mention them."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(tempfile.gettempdir()) / f"compress-{os.getuid()}"


@contextmanager
def registered_run() -> Iterator[None]:
    """Counts this process among the runs of its user on this machine, until the context ends or the process does."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{os.getpid()}.run"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it with the process, however that ends
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def count_concurrent_runs() -> int:
    """Returns the number of other runs that are under way now."""
    return sum(_is_held(path) for path in FOLDER.glob("*.run") if path.stem != str(os.getpid()))


def _is_held(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it ended between the listing and here
        return False
    return False
