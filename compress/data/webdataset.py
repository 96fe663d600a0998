"""Reads images from tar files in WebDataset's layout: a folder, patterns of names, or commands that write them."""

import itertools
import logging
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.config.data_settings import DataConfig
from compress.data.dataset import digest
from compress.data.defaults import square_of
from compress.data.image_folder import Files
from compress.data.listing import SkippedFiles
from compress.data.manifest import manifest_of
from compress.data.shards import Members, ShardFacts, read_shard
from compress.data.targets import TARGETS
from compress.utils.errors import UserError
from compress.utils.file_lock import lock_file
from compress.utils.image_layout import require_sixteen_bits

log = logging.getLogger("compress")

_SPLITS = ("train", "val", "test")
_PIPE = "pipe:"
_LABEL = 3  # in a row of ShardFacts
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def webdataset(config: DataConfig, manifests: Path | None) -> tuple[dict[str, Files], list[str], list[str]]:
    """Reads the shards `root/train*.tar`, `root/test*.tar` and perhaps `root/val*.tar`, or those of `data.shards`.

    `manifests` is the folder that remembers the content of shards, and keeps what pipes wrote. Returns the splits, the
    class names and a digest of each split. Raises UserError as `read_shard` does, and for splits without shards.
    """
    shards = _files(config, manifests)
    _check_shared(shards)
    root = Path(config.root or ".")
    with manifest_of(root, manifests, read_shard) as manifest:
        found = {split: [ShardFacts(*row) for row in manifest.rows(paths)] for split, paths in shards.items()}
    _report(found, shards, root)
    targets = TARGETS[config.task]
    labels = {split: [row[_LABEL] for facts in known for row in facts.rows] for split, known in found.items()}
    arrays = {split: targets.read(values, len(values), f"labels of {split}") for split, values in labels.items()}
    classes = targets.name(arrays, dict.fromkeys(arrays))
    splits, digests = {}, []
    for split, known in found.items():
        members = _members(shards[split], known)
        splits[split] = Files(
            members,
            torch.from_numpy(arrays[split]),
            square_of(config),
            config.workers,
            config.channels or 3,
            shards=torch.from_numpy(members.numbers),
        )
        digests.append(digest(*[facts.digest for facts in known], arrays[split]))
    return splits, classes, digests


def _files(config: DataConfig, manifests: Path | None) -> dict[str, list[str]]:
    """Returns the tar files of each split that is given."""
    if config.shards:
        source = "data.shards"
        found: dict[str, list[str]] = {split: [] for split in _SPLITS}
        for split, pattern in _patterns(config.shards):
            found[split] += _expand(split, pattern, manifests)
    else:
        root = Path(config.root) if config.root else None
        if root is None or not root.is_dir():
            raise UserError(
                f"data.root={config.root}",
                "a folder with train*.tar and test*.tar",
                'set data.root=FOLDER, or data.shards=["train=PATTERN","test=PATTERN"]',
            )
        source = str(root)
        found = {split: sorted(map(str, root.glob(f"{split}*.tar"))) for split in _SPLITS}
    for split in ("train", "test"):
        if not found[split]:
            raise UserError(f"{source} without shards of {split}", "shards of train and of test", "add them")
    return {split: files for split, files in found.items() if files}


def _patterns(shards: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the split and the pattern of each entry of `data.shards`, by split."""
    found = []
    for text in shards:
        split, _, pattern = text.partition("=")
        if split not in _SPLITS or not pattern:
            raise UserError(f"data.shards with {text}", "SPLIT=PATTERN, SPLIT train, val or test", "mend that entry")
        found.append((split, pattern))
    return sorted(found, key=lambda entry: _SPLITS.index(entry[0]))


def _expand(split: str, pattern: str, manifests: Path | None) -> list[str]:
    """Returns the files that a pattern names, in order: {000..099}, {a,b} and *; or what a pipe writes."""
    names = ["".join(parts) for parts in itertools.product(*_choices(pattern))]
    if pattern.startswith(_PIPE):
        return [_spool(name.removeprefix(_PIPE), manifests) for name in names]
    files = [file for name in names for file in (sorted(glob(name)) if "*" in name else [name])]
    missing = next((file for file in files if not Path(file).is_file()), None)
    if missing is not None or not files:
        raise UserError(
            f"{split}={pattern}: {missing or 'no file'}{' is missing' if missing else ''}",
            "tar files that exist",
            "mend the pattern",
        )
    return files


def _choices(pattern: str) -> list[Sequence[str]]:
    """Returns what each part of a pattern may be: braces have several choices, what stands between them has one."""
    parts: list[Sequence[str]] = []
    end = 0
    for braces in _BRACES.finditer(pattern):
        parts.append([pattern[end : braces.start()]])
        span = _RANGE.fullmatch(braces[1])
        if span:
            parts.append([f"{number:0{len(span[1])}}" for number in range(int(span[1]), int(span[2]) + 1)])
        else:
            parts.append(braces[1].split(","))
        end = braces.end()
    return [*parts, [pattern[end:]]]


def _spool(command: str, folder: Path | None) -> str:
    """Returns a file with what a shell command writes: it is read at many places, which a pipe cannot.

    Without a folder to keep it in, the file lasts as long as this process.
    """
    place = folder or Path(_scratch_folder().name)
    name = sha256(command.encode()).hexdigest()[:32]
    file = place / f"{name}.tar"
    with lock_file(place, name):  # the processes of a training all come here
        if file.is_file():
            log.info("%s was written by %s before; to run that again, delete the file", file, command)
        else:
            log.info("writing %s, what %s writes", file, command)
            _write_output(command, file)
    return str(file)


@cache
def _scratch_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="compress_shards_")


def _write_output(command: str, file: Path) -> None:
    part = file.with_suffix(".part")
    with part.open("wb") as out:
        done = subprocess.run(command, shell=True, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        part.unlink()
        last = (done.stderr.strip().splitlines() or ["it wrote no error"])[-1]
        raise UserError(
            f"{_PIPE}{command}, which ended with status {done.returncode}: {last}",
            "a command that writes a tar file",
            "mend it",
        )
    part.replace(file)


def _check_shared(shards: dict[str, list[str]]) -> None:
    """Raises UserError for a file that is named twice."""
    seen: dict[str, str] = {}
    for split, files in shards.items():
        for file in files:
            if file in seen:
                raise UserError(f"{file} in {seen[file]} and in {split}", "each shard once", "mend the patterns")
            seen[file] = split


def _report(found: dict[str, list[ShardFacts]], shards: dict[str, list[str]], root: Path) -> None:
    """Logs images of which a part is read. Raises UserError for 16-bit images without white."""
    skipped = SkippedFiles()
    for split, known in found.items():
        for file, facts in zip(shards[split], known, strict=True):
            skipped.frames += [Path(file) / name for name in facts.frames]
        highest = [facts.highest for facts in known if facts.highest is not None]
        if highest:
            require_sixteen_bits(max(highest), f"16-bit images of {split}", "save them with 8 bits")
    skipped.log(root)


def _members(files: list[str], known: list[ShardFacts]) -> Members:
    rows: list[list[Any]] = [row for facts in known for row in facts.rows]
    numbers = np.repeat(np.arange(len(files)), [len(facts.rows) for facts in known])
    offsets, sizes = (np.array([row[at] for row in rows], np.int64) for at in (1, 2))
    return Members(files, numbers, [row[0] for row in rows], offsets, sizes)
