"""Data sets that fit into memory: digits, Fashion-MNIST, CIFAR-10 and the user's own .npz."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from compress.config.data_settings import DataConfig
from compress.data.dataset import NO_LABEL, Memory
from compress.data.targets import TARGETS, Targets
from compress.utils.errors import UserError
from compress.utils.image_layout import many_images, require_bits, scaled
from compress.utils.images import Square, as_bytes_if_exact, square

# split -> images (N, H, W[, C]), uint8 or float32 from 0 to 255, and labels (N,)
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def digits(config: DataConfig) -> tuple[Arrays, list[str]]:
    """Returns scikit-learn's 1,797 scans, 8x8 pixels in 17 greys; a stratified, fixed fifth is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(images, bundle.target, test_size=0.2, random_state=0, stratify=bundle.target)
    return {"train": (parts[0], parts[2]), "test": (parts[1], parts[3])}, [str(digit) for digit in range(10)]


def fashion_mnist(config: DataConfig) -> tuple[Arrays, list[str]]:
    """Returns 60,000 + 10,000 images, 28x28 grey (Xiao et al. 2017), read or downloaded by torchvision."""
    return _torchvision("FashionMNIST", config)


def cifar10(config: DataConfig) -> tuple[Arrays, list[str]]:
    """Returns 50,000 + 10,000 images, 32x32 colour (Krizhevsky 2009), read or downloaded by torchvision."""
    return _torchvision("CIFAR10", config)


def npz(config: DataConfig) -> tuple[Arrays, list[str]]:
    """Reads a file in MedMNIST's layout: `<split>_images` (N, H, W[, C]) and `<split>_labels` (N,) or (N, 1).

    Images are uint8, uint16 or floats in [0, 1], labels whole numbers, names or one-hot rows; with data.task=multilabel
    rows of 0 and 1 (N, K). train_labels may be missing: then train has no labels, and the classes are those of test.
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
    targets = TARGETS[config.task]
    splits = [split for split in ("train", "val", "test") if f"{split}_images" in found]
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for split in splits:
        images[split] = _npz_images(found, split, path)
        if split != "train" or "train_labels" in found:
            labels[split] = _npz_labels(found, split, len(images[split]), path, targets)
    for split in ("train", "test"):
        if split not in images:
            names = ", ".join(sorted(found)) or "none of them"
            raise UserError(f"{path} with {names}", f"{split}_images and {split}_labels", "add the missing arrays")
    if "train" not in labels:
        labels = {"train": np.full((len(images["train"]), *labels["test"].shape[1:]), NO_LABEL), **labels}
    classes = targets.name(labels, dict.fromkeys(labels))
    return {split: (images[split], labels[split]) for split in splits}, classes


def _npz_images(found: dict[str, np.ndarray], split: str, path: Path) -> np.ndarray:
    """Returns the images (N, H, W[, C]) of a split: uint8, or float32 from 0 to 255."""
    name = f"{path}: {split}_images"
    images = many_images(found[f"{split}_images"], name)
    require_bits(images, name)
    return as_bytes_if_exact(scaled(images, name))


def _npz_labels(found: dict[str, np.ndarray], split: str, count: int, path: Path, targets: Targets) -> np.ndarray:
    """Returns the targets of the `count` images of a split."""
    name = f"{split}_labels"
    if name not in found:
        raise UserError(f"{path}: {name} missing", f"one class an image, ({count},)", "add the labels of these images")
    return targets.read(found[name], count, f"{path}: {name}")


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
    """Returns whether the files are there; nothing is then downloaded, so the folder may be read-only."""
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
    """Returns images (N, H, W[, C]) as (N, C, S, S), S being `image_size`; other sizes are cropped and resized."""
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[1:3] != (image_size, image_size) and len(images):
        images = np.stack([square(image, Square(image_size)) for image in images])
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Memory(pixels, torch.from_numpy(labels.astype(np.int64)))


ARRAYS: dict[str, Callable[[DataConfig], tuple[Arrays, list[str]]]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "npz": npz,
}
