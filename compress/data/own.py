"""Images given in Python, as arrays or as datasets, brought into the form of the data sets that lie in files."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.data.arrays import Arrays
from compress.errors import UserError
from compress.pixels import middle_square

_FORMS = "(images, labels) or a dataset of (image, label); images uint8, or float in [0, 1]"


def own_arrays(splits: Sequence[Any], image_size: int | None) -> tuple[Arrays, list[str]]:
    """(train, val, test) -> uint8 (N, H, W, C) and labels (N,) a split, and the names of the classes.

    val may be None: it is then held out of train. Each other one is a pair of images (N, H, W[, C]) or (N, C, H, W)
    with their labels, or a dataset with a length; its images may be PIL's, of any size where `image_size` is given.
    All are held in memory. Raises UserError for what is neither.
    """
    if not isinstance(splits, Sequence) or len(splits) != 3:
        raise UserError(f"data of {type(splits).__name__}", "(train, val, test), val None if there is none", "mend it")
    named = dict(zip(("train", "val", "test"), splits, strict=True))
    arrays = {
        name: _pair(split, name, image_size) if _is_pair(split) else _dataset(split, name, image_size)
        for name, split in named.items()
        if split is not None or name != "val"
    }
    names = getattr(named["train"], "classes", None)
    count = int(max(labels.max(initial=0) for _, labels in arrays.values())) + 1
    return arrays, [str(name) for name in names] if names else [str(label) for label in range(count)]


def _is_pair(split: Any) -> bool:
    return isinstance(split, tuple) and len(split) == 2 and not isinstance(split[0], tuple)


def _pair(split: tuple, name: str, image_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (np.asarray(part.cpu() if isinstance(part, torch.Tensor) else part) for part in split)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or labels.shape != (len(images),):
        raise UserError(f"{name} with images {images.shape} and labels {labels.shape}", _FORMS, "mend their shapes")
    return _pixels(images, name), labels.astype(np.int64)


def _dataset(split: Any, name: str, image_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(split, Sized) or not hasattr(split, "__getitem__"):
        raise UserError(f"{name} of {type(split).__name__}", _FORMS, "give a dataset that has a length and items")
    images, labels = [], []
    for at in range(len(split)):
        image, label = split[at][:2]
        images.append(_array(image, image_size))
        labels.append(int(label))
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        some = ", ".join(map(str, sorted(sizes)[:3]))
        raise UserError(f"{name} with images of {some}", "one size", "add the override data.image_size=PIXELS")
    return _pixels(np.stack(images), name), np.asarray(labels, np.int64)


def _array(image: Any, image_size: int | None) -> np.ndarray:
    """An item's image as (H, W[, C])."""
    if isinstance(image, Image.Image):
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        return np.asarray(middle_square(image, image_size) if image_size else image)
    array = np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image)
    channels_first = array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3)
    return array.transpose(1, 2, 0) if channels_first else array


def _pixels(images: np.ndarray, name: str) -> np.ndarray:
    """uint8 of uint8, or of floats in [0, 1]."""
    if images.dtype == np.uint8:
        return images
    low, high = (float(images.min(initial=0)), float(images.max(initial=0)))
    if not np.issubdtype(images.dtype, np.floating) or not (low >= 0 and high <= 1):
        raise UserError(
            f"{name} with {images.dtype} from {low:.3g} to {high:.3g}",
            "pixels: uint8, or floats in [0, 1]",
            "give the images before they are normalised; data.mean and data.std do that",
        )
    return (images * 255).round().astype(np.uint8)
