"""A lock that processes and machines share through a folder: its holder updates it, and a dead holder loses it.

Two machines need no common clock: a waiting process measures itself whether the lock still changes.
"""

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("compress")

BEAT_S = 5.0
STALE_S = 60.0  # a holder that does not update its lock for so long counts as dead
POLL_S = 0.5


@contextmanager
def lock_file(folder: Path, name: str, waiting: Callable[[dict], None] | None = None) -> Iterator[None]:
    """Holds the lock `name` in `folder` while the context lasts; waits while another process has it.

    `waiting` is called once with the holder's host and pid, and may raise. Each holder has a file of its own with a
    generation number. Only one process can create the next generation after a dead holder, so that no living holder
    ever loses the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = _acquire(folder, name, waiting)
    stopped = threading.Event()
    beat = threading.Thread(target=_beat, args=(own, stopped), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stopped.set()
        beat.join()
        last = _generation(own)
        for path in sorted(_files(folder, name), key=_generation):
            if _generation(path) <= last:
                path.unlink(missing_ok=True)


def _acquire(folder: Path, name: str, waiting: Callable[[dict], None] | None) -> Path:
    seen: tuple[Path, str] | None = None
    since, reported = time.monotonic(), False
    while True:
        newest = max(_files(folder, name), key=_generation, default=None)
        if newest is None:
            if (own := _create(folder, name, 0)) is not None:
                return own
            continue
        content = _read(newest)
        if (newest, content) != seen:
            seen, since = (newest, content), time.monotonic()
        holder = _holder(content)
        if is_dead_here(holder) or time.monotonic() - since > STALE_S:
            if (own := _create(folder, name, _generation(newest) + 1)) is not None:
                log.warning("took over from %s, which has ended without a word", _who(holder))
                return own
            continue
        if not reported and waiting is not None and content:
            waiting(holder)
            reported = True
        time.sleep(POLL_S)


def _create(folder: Path, name: str, generation: int) -> Path | None:
    """Creates the lock's file; returns None where another process was first."""
    path = folder / f"{name}.{generation}.lock"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_content(0))
    except FileExistsError:
        return None
    return path


def _beat(path: Path, stopped: threading.Event) -> None:
    count = 0
    while not stopped.wait(BEAT_S):
        count += 1
        part = path.with_suffix(".beat")
        part.write_text(_content(count), encoding="utf-8")
        part.replace(path)


def this_process() -> dict[str, str | int]:
    """Returns what identifies this process on all machines."""
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}


def _content(beat: int) -> str:
    return json.dumps(this_process() | {"beat": beat})


def _boot() -> str:
    """Returns an identifier of the machine's last start; empty where the system has none."""
    source = Path("/proc/sys/kernel/random/boot_id")
    return source.read_text().strip() if source.is_file() else ""


def _files(folder: Path, name: str) -> list[Path]:
    return [path for path in folder.glob(f"{name}.*.lock") if re.fullmatch(r"\d+", path.suffixes[-2][1:])]


def _generation(path: Path) -> int:
    return int(path.suffixes[-2][1:])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:  # released between the listing and here
        return ""


def _holder(content: str) -> dict:
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        return {}


def is_dead_here(holder: dict) -> bool:
    """Returns whether the holder was a process of this machine that has ended; False for other machines' processes.

    `holder` is what `this_process` returned there.
    """
    if holder.get("host") != socket.gethostname() or holder.get("boot") != _boot() or "pid" not in holder:
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists, and belongs to another user
        return False
    return False


def _who(holder: dict) -> str:
    return f"process {holder['pid']} on {holder['host']}" if holder else "an unknown process"
