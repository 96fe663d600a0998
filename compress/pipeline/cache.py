"""The cache of finished stages by the digest of all that made them. A stage that has changed is never reused."""

import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.utils.file_lock import lock_file
from compress.utils.files import STAGE, digests, finished_stage, fresh_folder, read_json

log = logging.getLogger("compress")

_TICK_NS = 1_000_000  # the smallest step that file systems and floats of seconds resolve
_LOCKS, _DAMAGED, _UNFINISHED = "locks", "damaged", "unfinished"


@dataclass
class Entry:
    """A stage in the cache."""

    key: str
    folder: Path
    size_bytes: int
    used_s: float  # when it was last stored or fetched, in seconds since 1970
    record: dict[str, Any]  # its stage.json


class Cache:
    """The stages in `folder`, which several processes and machines may use at once."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def compute_once(self, key: str) -> Iterator[None]:
        """Lets one process at a time compute the stage `key`; the others wait here and then find it.

        Nothing waits where the folder cannot be written.
        """

        def waiting(holder: dict) -> None:
            log.info("waiting for %s on %s, which computes this stage", holder.get("pid"), holder.get("host"))

        if not self._writable():
            yield
            return
        with lock_file(self.folder / _LOCKS, key, waiting):
            yield

    def fetch(self, key: str, stage_dir: Path) -> dict[str, Any] | None:
        """Links the files of `key` into `stage_dir`, all but stage.json, and returns the record of stage.json.

        Returns None where the cache has no such stage. A stage with a changed file is set aside with a warning.
        """
        entry = self._entry_dir(key)
        if not (entry / STAGE).is_file():
            return None
        record = finished_stage(entry, key)
        if record is None:
            self._set_aside(key)
            return None
        fresh_folder(stage_dir)
        for name in record["files"]:
            _link(entry / name, stage_dir / name)
        if digests(stage_dir) != record["files"]:  # changed between the check and the link
            self._set_aside(key)
            fresh_folder(stage_dir)
            return None
        if self._writable():
            self._mark_used(entry)
        return record

    def store(self, key: str, stage_dir: Path) -> None:
        """Adds a finished stage. Logs a warning where the cache cannot be written or is full."""
        unfinished = self.folder / _UNFINISHED / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
        try:
            unfinished.mkdir(parents=True)
            for path in stage_dir.iterdir():
                if path.is_file():
                    _link(path, unfinished / path.name)
            self._entry_dir(key).parent.mkdir(parents=True, exist_ok=True)
            if (self._entry_dir(key) / STAGE).is_file():  # another process stored the same
                shutil.rmtree(unfinished)
                return
            if self._entry_dir(key).exists():  # what a killed `prune` left
                shutil.rmtree(self._entry_dir(key))
            unfinished.rename(self._entry_dir(key))
            self._mark_used(self._entry_dir(key))
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            log.warning("this stage is not in the cache: %s", error)

    def entries(self) -> list[Entry]:
        """Returns all stages, the last used first, without checking their files."""
        found = []
        for path in self.folder.glob(f"??/*/{STAGE}"):
            folder = path.parent
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            found.append(Entry(folder.name, folder, size, folder.stat().st_mtime, read_json(path)))
        return sorted(found, key=lambda entry: -entry.used_s)

    def verify(self) -> tuple[int, list[Path]]:
        """Reads every file; returns the number of whole stages, and where the damaged ones were moved."""
        whole, damaged = 0, []
        for path in sorted(self.folder.glob(f"??/*/{STAGE}")):
            if finished_stage(path.parent, path.parent.name) is None:
                damaged.append(self._set_aside(path.parent.name))
            else:
                whole += 1
        return whole, damaged

    def prune(self, max_bytes: float) -> list[Entry]:
        """Removes the least recently used stages until at most `max_bytes` remain, and what killed processes wrote."""
        for name in (_DAMAGED, _UNFINISHED):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        removed = []
        while entries and total > max_bytes:
            entry = entries.pop()
            with self.compute_once(entry.key):
                (entry.folder / STAGE).unlink()  # first: what is half removed must not look whole
                shutil.rmtree(entry.folder)
            total -= entry.size_bytes
            removed.append(entry)
        return removed

    def _entry_dir(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _mark_used(self, entry: Path) -> None:
        """Dates `entry` after all others: now, or later where a clock was ahead when another entry was dated."""
        now = time.time_ns()
        for other in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # removed in the meantime
                now = max(now, other.stat().st_mtime_ns + _TICK_NS)
        os.utime(entry, ns=(now, now))

    def _writable(self) -> bool:
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        return os.access(existing, os.W_OK)

    def _set_aside(self, key: str) -> Path:
        """Moves a damaged stage out of the way, where it can be inspected; returns its new place."""
        place = self.folder / _DAMAGED / f"{key}-{uuid.uuid4().hex[:8]}"
        log.warning("a file of %s is not as it was written: it is computed again; see %s", self._entry_dir(key), place)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._entry_dir(key).rename(place)
        except OSError as error:
            log.warning("it could not be moved: %s", error)
        return place


def _link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
