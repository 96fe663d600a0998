"""Data sets that fit into memory: digits, Fashion-MNIST, CIFAR-10 and the user's own .npz."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from compress.config import DataConfig
from compress.data.splits import NO_LABEL, Memory
from compress.errors import UserError

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> uint8 images (N, H, W[, C]), labels (N,)


def digits(config: DataConfig) -> tuple[Arrays, list[str]]:
    """scikit-learn's 1,797 scans of 8x8 pixels in 17 greys; a stratified fifth, always the same, is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(images, bundle.target, test_size=0.2, random_state=0, stratify=bundle.target)
    return {"train": (parts[0], parts[2]), "test": (parts[1], parts[3])}, [str(digit) for digit in range(10)]


def fashion_mnist(config: DataConfig) -> tuple[Arrays, list[str]]:
    """60,000 + 10,000 images, 28x28 grey (Xiao et al. 2017), read or downloaded by torchvision."""
    return _torchvision("FashionMNIST", config)


def cifar10(config: DataConfig) -> tuple[Arrays, list[str]]:
    """50,000 + 10,000 images, 32x32 colour (Krizhevsky 2009), read or downloaded by torchvision."""
    return _torchvision("CIFAR10", config)


def npz(config: DataConfig) -> tuple[Arrays, list[str]]:
    """A file in MedMNIST's layout: `<split>_images` uint8 (N, H, W[, C]) and `<split>_labels` (N,) or (N, 1).

    train_labels may be missing: then train has no labels, and the classes are those of test.
    """
    path = _existing(config)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files if name.endswith(("_images", "_labels"))}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: {error}",
            "an .npz of plain arrays, without pickled objects",
            "write it with numpy.savez_compressed",
        ) from error
    arrays = {split: _npz_split(found, split, path) for split in ("train", "val", "test") if f"{split}_images" in found}
    for split in ("train", "test"):
        if split not in arrays:
            names = ", ".join(sorted(found)) or "none of them"
            raise UserError(f"{path} with {names}", f"{split}_images and {split}_labels", "add the missing arrays")
    labels = arrays["train" if "train_labels" in found else "test"][1]
    count = int(labels.max(initial=0)) + 1
    return arrays, [str(label) for label in range(count)]


def _npz_split(found: dict[str, np.ndarray], split: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = found[f"{split}_images"], found.get(f"{split}_labels")
    shape = tuple(images.shape)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and shape[3] not in (1, 3)):
        raise UserError(
            f"{path}: {split}_images {images.dtype} {shape}",
            "uint8 (N, H, W) or (N, H, W, 1 or 3)",
            "convert the array",
        )
    if labels is None and split == "train":
        labels = np.full(len(images), NO_LABEL)
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is None or labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        got = "missing" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
        raise UserError(
            f"{path}: {split}_labels {got}",
            f"one whole number an image, ({len(images)},)",
            "one class an image, from 0",
        )
    return images, labels


def _torchvision(name: str, config: DataConfig) -> tuple[Arrays, list[str]]:
    import torchvision

    root = Path(config.root or "data")
    try:
        train, test = (
            getattr(torchvision.datasets, name)(root, train=flag, download=not _present(name, root, flag))
            for flag in (True, False)
        )
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"data.root={root}: {error}",
            f"{name} as torchvision lays it out, or a network to fetch it",
            "set data.root",
        ) from error
    arrays = {
        split: (np.asarray(part.data), np.asarray(part.targets)) for split, part in (("train", train), ("test", test))
    }
    return arrays, list(train.classes)


def _present(name: str, root: Path, train: bool) -> bool:
    """Whether the files are there: a download into a folder that cannot be written is then never tried."""
    if name == "CIFAR10":
        return (root / "cifar-10-batches-py").is_dir()
    stem = "train" if train else "t10k"
    return all(
        (root / name / "raw" / f"{stem}-{part}").is_file() for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )


def _existing(config: DataConfig) -> Path:
    if config.root is None or not Path(config.root).is_file():
        raise UserError(f"data.root={config.root}", "an .npz file that exists", "set data.root=FILE.npz")
    return Path(config.root)


def to_memory(images: np.ndarray, labels: np.ndarray, image_size: int) -> Memory:
    """uint8 (N, H, W[, C]) as uint8 (N, C, S, S): one channel where there is none, resized where S differs."""
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if pixels.shape[2:] != (image_size, image_size):
        pieces = [
            F.interpolate(part.float(), (image_size, image_size), mode="bilinear", antialias=True)
            for part in pixels.split(1024)
        ]
        pixels = torch.cat([piece.round().clamp(0, 255).to(torch.uint8) for piece in pieces])
    return Memory(pixels.contiguous(), torch.from_numpy(labels.astype(np.int64)))


ARRAYS: dict[str, Callable[[DataConfig], tuple[Arrays, list[str]]]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "npz": npz,
}
