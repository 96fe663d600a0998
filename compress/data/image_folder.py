"""Reads a folder of image files and decodes them when they are needed, so that a set need not fit into memory."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from compress.config.data_settings import DataConfig
from compress.data.dataset import NO_LABEL, LabelledImages, digest_of_all
from compress.data.defaults import square_of
from compress.data.listing import SkippedFiles, check_images, folders_in, images_below
from compress.data.manifest import Manifest, manifest_of
from compress.utils.errors import UserError
from compress.utils.images import Square, opened, read
from compress.utils.nearest import did_you_mean

_NEEDED = ("train", "test")


@dataclass
class Files:
    """Image files with their labels, decoded to (N, C, S, S) by `workers` processes.

    Pixels are uint8; float32 from 0 to 255 in a batch with images of more bits.
    """

    paths: Sequence[str | Path]
    labels: torch.Tensor
    square: Square
    workers: int
    channels: int = 3
    groups: torch.Tensor | None = None  # (N,), the number of each image's group, which no split may share

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[LabelledImages]:
        loader = torch.utils.data.DataLoader(
            _Decoder(self.paths, self.square, self.channels),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(0),  # by default a pass draws from the stage's random numbers
            worker_init_fn=_leave_signals_to_parent,
        )
        for images, batch in zip(loader, batches, strict=True):
            if isinstance(images, UserError):
                raise images
            yield images, self.labels[batch]

    def with_labels(self, labels: torch.Tensor) -> "Files":
        return replace(self, labels=labels)

    def part(self, positions: torch.Tensor) -> "Files":
        """Returns the images at `positions` (N,) alone."""
        groups = None if self.groups is None else self.groups[positions]
        paths = [self.paths[at] for at in positions.tolist()]
        return replace(self, paths=paths, labels=self.labels[positions], groups=groups)


def imagefolder(config: DataConfig, manifests: Path | None) -> tuple[dict[str, Files], list[str], list[str]]:
    """Reads `root/train/<class>/*`, `root/test/<class>/*` and perhaps `root/val/<class>/*`.

    A train folder with images and no folders in it has no labels; the classes are then those of test. `manifests` is
    the folder that remembers which files were read before, if there is one. Returns the splits, the class names and a
    digest of each split's files. Raises UserError for a missing folder, a class that train lacks, or an empty file.
    """
    root = Path(config.root) if config.root else None
    if root is None or not root.is_dir():
        raise UserError(f"data.root={config.root}", "a folder that exists", "set data.root=FOLDER")
    for split in _NEEDED:
        if not (root / split).is_dir():
            found = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
            raise UserError(f"{root} with {found}", "folders train and test (and val)", f"add {root / split}")
    skipped = SkippedFiles()
    given = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    skipped.others += [path for path in sorted(root.iterdir()) if path.name not in given and path.name[0] != "."]
    folders = {split: folders_in(root / split, SkippedFiles()) for split in _NEEDED}
    classes = [path.name for path in folders["train"] or folders["test"]]
    square, splits, digests = square_of(config), {}, []
    with manifest_of(root, manifests) as manifest:
        for split in given:
            labelled = split != "train" or folders["train"]
            paths, labels = (_list_split if labelled else _list_unlabelled)(root / split, classes, skipped)
            digests.append(digest_files(paths, skipped, manifest))
            labels = torch.tensor(labels, dtype=torch.int64)
            splits[split] = Files(paths, labels, square, config.workers, config.channels or 3)
    skipped.log(root)
    return splits, classes, digests


def digest_files(paths: Sequence[str], skipped: SkippedFiles, manifest: Manifest) -> str:
    """Returns the digest of the name and the content of each file."""
    facts = check_images(paths, skipped, manifest)
    return digest_of_all(
        part for path, known in zip(paths, facts, strict=True) for part in (manifest.relative(path), known.digest)
    )


def _list_unlabelled(folder: Path, classes: list[str], skipped: SkippedFiles) -> tuple[list[str], list[int]]:
    paths = images_below(folder, skipped)
    return paths, [NO_LABEL] * len(paths)


def _list_split(folder: Path, classes: list[str], skipped: SkippedFiles) -> tuple[list[str], list[int]]:
    paths, labels = [], []
    for place in folders_in(folder, skipped):
        if place.name not in classes:
            raise UserError(
                f"class {place}",
                f"one of train's: {', '.join(classes[:10])}",
                f"{did_you_mean(place.name, classes)}add it to train, or remove it",
            )
        found = images_below(place, skipped)
        paths += found
        labels += [classes.index(place.name)] * len(found)
    return paths, labels


class _Decoder(torch.utils.data.Dataset):
    def __init__(self, paths: Sequence[str | Path], square: Square, channels: int):
        self.paths, self.square, self.channels = paths, square, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> torch.Tensor | UserError:
        """Returns the image (C, S, S), or its error: one that a worker raises would arrive as another exception."""
        path = self.paths[at]
        try:
            with opened(path, str(path)) as image:
                pixels = read(image, self.channels, self.square, str(path))
        except UserError as error:
            return error
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _leave_signals_to_parent(worker: int) -> None:
    """Ignores SIGTERM and SIGINT, which reach all processes of a run: the training still finishes its step.

    A worker ends with its loader or its parent.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _collate(items: list[torch.Tensor | UserError]) -> torch.Tensor | UserError:
    mistake = next((item for item in items if isinstance(item, UserError)), None)
    if mistake is not None:
        return mistake
    images = [item for item in items if not isinstance(item, UserError)]
    deep = any(image.is_floating_point() for image in images)
    return torch.stack([image.float() for image in images] if deep else images)
