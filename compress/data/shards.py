"""Lists the images in tar files and reads each at its place, so that an epoch needs no pass over whole files."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from compress.data.file_facts import FileFacts, facts_of
from compress.data.listing import image_suffixes
from compress.utils.errors import UserError
from compress.utils.files import file_sha256

_LABELS = (".cls", ".json", ".txt")  # WebDataset's: a number or name, an object with "label", a name
WINDOW = 16  # shards whose images are shuffled together


class Member(NamedTuple):
    """An image in a tar file."""

    shard: str
    name: str
    offset: int  # of its first byte
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.name} in {self.shard}"

    def open(self) -> io.BytesIO:
        """Returns the bytes of the image. Raises OSError where the file is missing or too short."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self}: the file has become shorter")
        return io.BytesIO(content)


@dataclass(frozen=True)
class Members(Sequence):
    """The images of several tar files, in arrays: an object for each of millions would take gigabytes."""

    shards: list[str]
    numbers: np.ndarray  # (N,) int64, of the shard
    names: list[str]
    offsets: np.ndarray  # (N,) int64
    sizes: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, at: Any) -> Any:
        shard = self.shards[self.numbers[at]]
        return Member(shard, self.names[at], int(self.offsets[at]), int(self.sizes[at]))


class ShardFacts(NamedTuple):
    """What is known of a tar file."""

    digest: str  # SHA-256 of its bytes
    rows: list[list[Any]]  # name, offset, size and label of each image
    frames: list[str]  # names of the images with several frames, of which only the first is read
    highest: int | None  # value of all images with 16 bits a pixel; None without such


def read_shard(path: str) -> ShardFacts:
    """Reads a tar file, and the image and the label of each sample in it: files whose names agree up to the first dot.

    Raises UserError, with the name of the file in it, for a tar file that is damaged or cut off, for one without a
    sample, for a sample without an image or a label or with several images, and for what is no image.
    """
    rows: list[list[Any]] = []
    known: list[FileFacts] = []
    try:
        digest = file_sha256(path)
        with tarfile.open(path, "r:") as archive:
            for sample in _samples(archive):
                image, label = _image_and_label(archive, sample, path)
                content = archive.extractfile(image)
                known.append(facts_of(b"" if content is None else content.read(), f"{path}, {image.name}"))
                rows.append([image.name, image.offset_data, image.size, label])
            _require_end(archive, path)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: {error}", "a tar file that is whole and not compressed", "copy it again") from error
    if not rows:
        raise UserError(f"{path} without a sample", "images and their labels", "write that shard anew, or remove it")
    frames = [row[0] for row, facts in zip(rows, known, strict=True) if facts.has_frames]
    highest = max((facts.highest for facts in known if facts.highest is not None), default=None)
    return ShardFacts(digest, rows, frames, highest)


def _require_end(archive: tarfile.TarFile, path: str) -> None:
    """Raises UserError unless zeros end the members: tarfile takes a file that is cut off before one for whole."""
    with open(path, "rb") as file:
        file.seek(archive.offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        last = archive.getnames()[-1]
        raise UserError(
            f"{path}: damaged or cut off after {last}, at byte {archive.offset}",
            "a tar file that is whole, with zeros at its end",
            "copy it again, or write it anew",
        )


def _image_and_label(
    archive: tarfile.TarFile, sample: list[tuple[str, tarfile.TarInfo]], path: str
) -> tuple[tarfile.TarInfo, Any]:
    suffixes = image_suffixes()
    images = [member for suffix, member in sample if _last_suffix(suffix) in suffixes]
    labels = [member for suffix, member in sample if suffix in _LABELS]
    if len(images) != 1 or not labels:
        found = ", ".join(member.name for _, member in sample)
        raise UserError(
            f"{path}, {sample[0][1].name}: a sample of {found}",
            "one image, and a label in a file .cls, .json or .txt with the same name",
            "write that shard anew",
        )
    return images[0], _read_label(archive, labels[0], path)


def _samples(archive: tarfile.TarFile) -> Iterator[list[tuple[str, tarfile.TarInfo]]]:
    """Yields the (suffix, member) of each sample, whose files stand beside each other."""
    key = ""
    sample: list[tuple[str, tarfile.TarInfo]] = []
    for member in archive:
        name = PurePosixPath(member.name)
        if not member.isfile() or name.name.startswith((".", "__")):
            continue
        stem, dot, rest = name.name.partition(".")
        own = str(name.parent / stem)
        if own != key and sample:
            yield sample
            sample = []
        key = own
        sample.append(((dot + rest).lower(), member))
    if sample:
        yield sample


def _last_suffix(suffix: str) -> str:
    return os.path.splitext("x" + suffix)[1]


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Any:
    """Returns a number, a name or a row of numbers."""
    file = archive.extractfile(member)
    text = "" if file is None else file.read().decode(errors="replace").strip()
    if member.name.lower().endswith(".json"):
        try:
            label = json.loads(text)["label"]
        except (json.JSONDecodeError, KeyError, TypeError):
            label = None
        if label is None or label == "":
            raise UserError(
                f"{path}, {member.name}: {text[:60]!r}", 'an object with the key "label"', "write that shard anew"
            )
        return label
    if not text:
        raise UserError(f"{path}, {member.name}: nothing", "the class of the image", "write that shard anew")
    return int(text) if text.isdecimal() else text


def windowed_order(shards: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns a random order of images whose shards are `shards` (N,): all of them in random order, some at a time.

    The images of WINDOW shards are shuffled together, so that a disk reads a few files at once, not all of them.
    """
    numbers = shards.unique()
    ranks = torch.empty(int(numbers.max()) + 1, dtype=torch.int64)
    ranks[numbers] = torch.randperm(len(numbers), generator=generator)
    shuffled = torch.randperm(len(shards), generator=generator)
    windows = ranks[shards[shuffled]] // WINDOW
    return shuffled[windows.argsort(stable=True)]
