"""A folder of image files, decoded as they are needed: for sets that do not fit into memory."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from compress.config.schema import DataConfig
from compress.data.dataset import NO_LABEL, Batch, digest_of_all
from compress.data.defaults import square_of
from compress.data.listing import LeftOut, folders_in, images_below, look_into
from compress.utils.errors import UserError
from compress.utils.images import Square, opened, read
from compress.utils.nearest import did_you_mean

_NEEDED = ("train", "test")


@dataclass
class Files:
    """Image files with their labels, decoded to (N, C, S, S) by `workers` processes.

    Pixels are uint8; float32 from 0 to 255 in a batch with images of more bits.
    """

    paths: list[Path]
    labels: torch.Tensor
    square: Square
    workers: int
    channels: int = 3

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            _Decoder(self.paths, self.square, self.channels),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(0),  # else a pass would draw from the stage's own random numbers
            worker_init_fn=_leave_signals_to_parent,
        )
        for images, batch in zip(loader, batches, strict=True):
            if isinstance(images, UserError):
                raise images
            yield images, self.labels[batch]

    def with_labels(self, labels: torch.Tensor) -> "Files":
        return replace(self, labels=labels)


def imagefolder(config: DataConfig) -> tuple[dict[str, Files], list[str], list[str]]:
    """`root/train/<class>/*`, `root/test/<class>/*` and perhaps `root/val/<class>/*`.

    A train folder with images and no folders in it has no labels; the classes are then those of test. Returns the
    splits, the class names and a digest of each split's files. Raises UserError for a missing folder, a class that
    train lacks, or an empty file.
    """
    root = Path(config.root) if config.root else None
    if root is None or not root.is_dir():
        raise UserError(f"data.root={config.root}", "a folder that exists", "set data.root=FOLDER")
    for split in _NEEDED:
        if not (root / split).is_dir():
            found = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
            raise UserError(f"{root} with {found}", "folders train and test (and val)", f"add {root / split}")
    left_out = LeftOut()
    given = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    left_out.others += [path for path in sorted(root.iterdir()) if path.name not in given and path.name[0] != "."]
    folders = {split: folders_in(root / split, LeftOut()) for split in _NEEDED}
    classes = [path.name for path in folders["train"] or folders["test"]]
    splits, digests = {}, []
    square = square_of(config)
    for split in given:
        labelled = split != "train" or folders["train"]
        paths, labels = (_list_split if labelled else _list_unlabelled)(root / split, classes, left_out)
        digests.append(digest_of_all(_parts(root, paths, left_out)))
        labels = torch.tensor(labels, dtype=torch.int64)
        splits[split] = Files(paths, labels, square, config.workers, config.channels or 3)
    left_out.log(root)
    return splits, classes, digests


def _parts(root: Path, paths: list[Path], left_out: LeftOut) -> Iterator[str | bytes]:
    """The name and the content of each file, which are what a data set is known by."""
    for path, content in zip(paths, look_into(paths, left_out), strict=True):
        yield path.relative_to(root).as_posix()
        yield content


def _list_unlabelled(folder: Path, classes: list[str], left_out: LeftOut) -> tuple[list[Path], list[int]]:
    paths = images_below(folder, left_out)
    return paths, [NO_LABEL] * len(paths)


def _list_split(folder: Path, classes: list[str], left_out: LeftOut) -> tuple[list[Path], list[int]]:
    paths, labels = [], []
    for place in folders_in(folder, left_out):
        if place.name not in classes:
            raise UserError(
                f"class {place}",
                f"one of train's: {', '.join(classes[:10])}",
                f"{did_you_mean(place.name, classes)}add it to train, or remove it",
            )
        found = images_below(place, left_out)
        paths += found
        labels += [classes.index(place.name)] * len(found)
    return paths, labels


class _Decoder(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], square: Square, channels: int):
        self.paths, self.square, self.channels = paths, square, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> torch.Tensor | UserError:
        """The image (C, S, S), or what is wrong with it: raised in a worker, it would come out as another exception."""
        path = self.paths[at]
        try:
            with opened(path, str(path)) as image:
                pixels = read(image, self.channels, self.square, str(path))
        except UserError as error:
            return error
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and job schedulers signal all processes of a run; the training finishes its step, for which it needs us.

    A worker ends when its loader does, or its parent.
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
