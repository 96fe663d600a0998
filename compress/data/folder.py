"""A folder of image files, decoded as they are needed: for sets that do not fit into memory."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from compress.config import DataConfig
from compress.data.splits import NO_LABEL, Batch, digest
from compress.errors import UserError
from compress.pixels import middle_square

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


_NEEDED = ("train", "test")


@dataclass
class Files:
    """Image files with their labels, decoded to RGB uint8 (N, 3, S, S) by `workers` processes."""

    paths: list[Path]
    labels: torch.Tensor
    image_size: int
    workers: int
    crop_share: float = 1.0
    interpolation: str = "bilinear"

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            _Decoder(self.paths, self.image_size, self.crop_share, self.interpolation),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(0),  # else a pass would draw from the stage's own random numbers
            worker_init_fn=_leave_signals_to_parent,
        )
        for images, batch in zip(loader, batches, strict=True):
            if isinstance(images, str):
                raise UserError(images, "an image that can be decoded", "repair or remove that file")
            yield images, self.labels[batch]


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
    folders = {split: sorted(path.name for path in (root / split).iterdir() if path.is_dir()) for split in _NEEDED}
    classes = folders["train"] or folders["test"]
    splits, digests = {}, []
    for split in ("train", "val", "test"):
        if (root / split).is_dir():
            labelled = split != "train" or folders["train"]
            paths, labels = _list_split(root / split, classes) if labelled else _list_unlabelled(root / split)
            how = config.image_size, config.workers, config.crop_share, config.interpolation
            splits[split] = Files(paths, torch.tensor(labels, dtype=torch.int64), *how)
            digests.append(
                digest(*(part for path in paths for part in (str(path.relative_to(root)), path.read_bytes())))
            )
    return splits, classes, digests


def _list_unlabelled(folder: Path) -> tuple[list[Path], list[int]]:
    paths = _images(folder)
    return paths, [NO_LABEL] * len(paths)


def _images(folder: Path) -> list[Path]:
    """The image files below a folder. Raises UserError where there is none, or one is empty."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise UserError(f"{folder} without an image", f"files ending in {' '.join(sorted(EXTENSIONS))}", "add images")
    empty = next((path for path in found if path.stat().st_size == 0), None)
    if empty:
        raise UserError(f"{empty}, 0 bytes", "an image", "repair or remove that file")
    return found


def _list_split(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    paths, labels = [], []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if place.name not in classes:
            raise UserError(
                f"class {place}", f"one of train's: {', '.join(classes[:10])}", "add it to train, or remove it"
            )
        found = _images(place)
        paths += found
        labels += [classes.index(place.name)] * len(found)
    return paths, labels


class _Decoder(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], image_size: int, crop_share: float, interpolation: str):
        self.paths, self.how = paths, (image_size, crop_share, interpolation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> torch.Tensor | str:
        """The image, or what is wrong with it: an exception of ours would not survive the way out of a worker."""
        try:
            with Image.open(self.paths[at]) as image:
                pixels = middle_square(image.convert("RGB"), *self.how)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{self.paths[at]}: {error}"
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and job schedulers signal all processes of a run; the training finishes its step, for which it needs us.

    A worker ends when its loader does, or its parent.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _collate(items: list[torch.Tensor | str]) -> torch.Tensor | str:
    return next((item for item in items if isinstance(item, str)), None) or torch.stack(items)
