"""Lists a folder of image files, which are decoded when they are needed, so that a set need not fit into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compress.config.data_settings import DataConfig
from compress.data.dataset import NO_LABEL, LabelledImages, digest_of_all
from compress.data.decoding import DecodingPool, Source
from compress.data.defaults import square_of
from compress.data.listing import SkippedFiles, check_images, folders_in, images_below
from compress.data.manifest import Manifest, manifest_of
from compress.data.shards import windowed_order
from compress.utils.errors import UserError
from compress.utils.images import Square
from compress.utils.nearest import did_you_mean

_NEEDED = ("train", "test")


@dataclass
class Files:
    """Image files with their labels, decoded to (N, C, S, S) by `workers` processes.

    Pixels are uint8; float32 from 0 to 255 in a batch with images of more bits.
    """

    paths: Sequence[Source]
    labels: torch.Tensor
    square: Square
    workers: int
    channels: int = 3
    pool: DecodingPool = None  # type: ignore[assignment]  # several splits may share one; by default, one of its own
    groups: torch.Tensor | None = None  # (N,), the number of each image's group, which no split may share
    shards: torch.Tensor | None = None  # (N,), the number of the tar file that each image is in

    def __post_init__(self) -> None:
        self.pool = self.pool or DecodingPool(self.square, self.channels, self.workers)

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[LabelledImages]:
        images = self.pool.decode([[self.paths[at] for at in batch.tolist()] for batch in batches])
        yield from zip(images, (self.labels[batch] for batch in batches), strict=True)

    def with_labels(self, labels: torch.Tensor) -> "Files":
        return replace(self, labels=labels)

    def close(self) -> None:
        self.pool.close()

    def shuffle(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns the images at `index` (N,) in random order; those in tar files some files at a time."""
        if self.shards is None:
            return index[torch.randperm(len(index), generator=generator)]
        return index[windowed_order(self.shards[index], generator)]

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
