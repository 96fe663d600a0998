"""Remembers the content of files by size and time, so that a start reads only those that are new or changed."""

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from compress.data.file_facts import FileFacts, read_facts
from compress.utils.console import progress
from compress.utils.cores import cores
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_FORMAT = "compress-manifest-1"
# A file may change again within one tick of its file system's clock, and keep its time. 2 s is FAT's tick, the longest.
_TICK_NS = 2_000_000_000
_CHUNK = 64  # files that a thread reads before it reports


# A file's size, modification time and time of status change, which differs even where a copy keeps the others; then
# what was read. Lists are as JSON has them: an object for each of millions of files would take seconds.
_Row = list[Any]
_STAMP_FIELDS = 3


class Manifest:
    """What `read` returned for the files below `root`, saved in `file`; nothing is saved where that is None."""

    def __init__(self, root: Path, file: Path | None, read: Callable[[str], tuple]):
        self._read_file = read
        self._prefix = os.path.join(root, "")
        self._file = file
        self._saved = {} if file is None else _load(file)
        self._read: dict[str, _Row] = {}
        self._young: set[str] = set()  # read within a tick after their last change: another one may not show

    def relative(self, path: str) -> str:
        """Returns the path below the root, with slashes."""
        return path.removeprefix(self._prefix).replace(os.sep, "/")

    def facts(self, paths: Sequence[str]) -> list[FileFacts]:
        """Returns what is known of each image file. Raises UserError as `read_facts` does."""
        return [FileFacts(*row) for row in self.rows(paths)]

    def rows(self, paths: Sequence[str]) -> list[_Row]:
        """Returns what is known of each file, and reads those that are new or changed. Raises what reading raises."""
        names = [self.relative(path) for path in paths]
        changed = []
        for path, name in zip(paths, names, strict=True):
            stamp, row = _stamp(path), self._saved.get(name)
            if row is None or row[: len(stamp)] != stamp:
                changed.append((path, name, stamp))
        if changed:
            self._read_files(changed)
        return [(self._read.get(name) or self._saved[name])[_STAMP_FIELDS:] for name in names]

    def save(self) -> None:
        """Writes what was learned, if anything. Logs a warning where the folder cannot be written."""
        learned = {name: row for name, row in self._read.items() if name not in self._young}
        if self._file is None or not learned:
            return
        rows = {name: row for name, row in self._saved.items() if os.path.exists(self._prefix + name)} | learned
        body = json.dumps(rows).encode()
        part = self._file.with_name(f"{self._file.name}.{uuid.uuid4().hex}.part")  # other processes write it too
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(f"{_FORMAT} {sha256(body).hexdigest()}\n".encode() + body)
            part.replace(self._file)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            log.warning("the next start reads all image files again: %s", error)

    def _read_files(self, changed: list[tuple[str, str, _Row]]) -> None:
        """Reads files in as many threads as there are cores: reading and hashing need no lock of Python's."""
        log.info("%s: reading %d files that are new or changed", self._prefix, len(changed))
        size = max(1, min(_CHUNK, len(changed) // 16))
        chunks = [changed[at : at + size] for at in range(0, len(changed), size)]
        _read_chunk = partial(_read_files, self._read_file)
        with progress("reading", len(changed)) as bar, ThreadPoolExecutor(cores()) as threads:
            for rows, young in threads.map(_read_chunk, chunks):
                self._read |= rows
                self._young |= young
                bar.advance(len(rows))


@contextmanager
def manifest_of(root: Path, folder: Path | None, read: Callable[[str], tuple] | None = None) -> Iterator[Manifest]:
    """Yields the manifest of `root`, and saves it in `folder` at the end, also after an error.

    `read` returns what JSON can hold; None: `read_facts`. Where `folder` is None, every file
    is read and nothing is saved.
    """
    read, file = read or read_facts, None
    if folder is not None:
        key = sha256(os.fsencode(root.resolve()) + read.__name__.encode()).hexdigest()
        file = folder / f"{key[:32]}.manifest"
    manifest = Manifest(root, file, read)
    try:
        yield manifest
    finally:
        manifest.save()


def _load(file: Path) -> dict[str, _Row]:
    """Returns the rows of a manifest; none where it is missing, damaged or of another format."""
    if not file.exists():
        return {}
    try:
        head, _, body = file.read_bytes().partition(b"\n")
    except OSError as error:
        log.warning("%s: %s; all image files are read again", file, error)
        return {}
    if head != f"{_FORMAT} {sha256(body).hexdigest()}".encode():
        log.warning("%s is damaged, or of another version: all image files are read again", file)
        return {}
    return json.loads(body)


def _stamp(path: str) -> _Row:
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "a file that can be read", "mend or remove it") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read_files(read: Callable[[str], tuple], files: list[tuple[str, str, _Row]]) -> tuple[dict[str, _Row], set[str]]:
    """Returns the row of each (path, name, stamp), and the names of those that changed less than a tick ago."""
    rows, young = {}, set()
    for path, name, stamp in files:
        if stamp[1] > time.time_ns() - _TICK_NS:
            young.add(name)
        rows[name] = [*stamp, *read(path)]
    return rows, young
