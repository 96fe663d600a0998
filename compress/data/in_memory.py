"""Converts images given in Python, as arrays or datasets, into the form of the built-in data sets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.data.builtin import ARRAYS, Arrays
from compress.data.dataset import NO_LABEL
from compress.data.labels import one_label
from compress.data.targets import TARGETS
from compress.utils.errors import UserError
from compress.utils.image_layout import many_images, one_image, require_bits, scaled, to_numpy
from compress.utils.images import Square, as_bytes_if_exact, natural_channels, opened, read, square, to_channels

_NAME = "own"  # the data set's, in stage.json too
_FORMS = "(images, labels) or a dataset of (image, label); images uint8, or float in [0, 1]"
_IMAGE_KEYS = ("image", "images", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "target", "targets", "class", "y")


@contextmanager
def user_data(arrays: Arrays, classes: list[str]) -> Iterator[str]:
    """Registers arrays as a data set for as long as the context lasts; yields its name."""
    ARRAYS[_NAME] = lambda config: (arrays, classes)
    try:
        yield _NAME
    finally:
        ARRAYS.pop(_NAME, None)


def in_memory_arrays(
    splits: Sequence[Any] | Mapping[str, Any], image_size: int | None, task: str = "classification"
) -> tuple[Arrays, list[str]]:
    """Returns pixels (N, H, W[, C]) and labels (N,) of each split of (train, val, test), and the names of the classes.

    val may be None: it is then held out of train. Each other split is a pair of images (N, H, W[, C]) or (N, C, H, W)
    with their labels, or a dataset with a length whose items are (image, label) or dicts with an image and a label; its
    images may be PIL's or files, of any size where `image_size` is given. Labels are whole numbers, names or one-hot
    rows, and with the task multilabel rows of 0 and 1. All are held in memory: uint8, or float32 from 0 to 255 where 8
    bits would not do. Raises UserError for what is neither, and for what cannot be known for sure.
    """
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    names: dict[str, Sequence[str] | None] = {}
    targets = TARGETS[task]
    for split, given in _splits(splits).items():
        pair = _pair(given)
        images, found = (_images(pair[0], split, image_size), pair[1]) if pair else _dataset(given, split, image_size)
        if not len(images):
            raise UserError(f"{split} without images", "at least one", "add images to that split")
        arrays[split], names[split] = images, None if pair else _class_names(given)
        if split != "train" or found is not None:  # the teacher's predictions can stand in for labels of train
            labels[split] = targets.read(found, len(images), f"{split} labels")
    if "train" not in labels:
        labels = {"train": np.full((len(arrays["train"]), *labels["test"].shape[1:]), NO_LABEL), **labels}
    classes = targets.name(labels, names)
    return {split: (arrays[split], labels[split]) for split in arrays}, classes


def _splits(splits: Any) -> dict[str, Any]:
    if isinstance(splits, Mapping):
        splits = [splits.get("train"), splits.get("val", splits.get("validation")), splits.get("test")]
    if not isinstance(splits, Sequence) or len(splits) != 3:
        raise UserError(f"data of {type(splits).__name__}", "(train, val, test), val None if there is none", "mend it")
    named = dict(zip(("train", "val", "test"), splits, strict=True))
    return {name: split for name, split in named.items() if split is not None or name != "val"}


def _pair(split: Any) -> tuple[Any, Any] | None:
    """Returns (images, labels) where a split is such a pair; None for a dataset, also for a list of two items."""
    if isinstance(split, Mapping):
        image, label = _keys(split, "a split")
        return split[image], split[label]
    if not isinstance(split, (tuple, list)) or len(split) != 2:
        return None
    first = split[0]
    if isinstance(first, (tuple, list)):
        return tuple(split) if _all_images(first) else None
    return None if isinstance(first, (Image.Image, Mapping, str)) else tuple(split)


def _all_images(parts: Sequence[Any]) -> bool:
    """Returns whether all parts are images, unlike an item of a dataset, which has a label, too."""
    if all(isinstance(part, (str, Path)) for part in parts):
        return True
    return all(isinstance(part, Image.Image) or np.ndim(to_numpy(part)) > 1 for part in parts)


def _dataset(split: Any, name: str, image_size: int | None) -> tuple[np.ndarray, list[Any]]:
    """Returns the pixels of a dataset's images, and its labels."""
    if not isinstance(split, Sized) or not hasattr(split, "__getitem__"):
        loader = ": of a DataLoader its .dataset" if hasattr(split, "dataset") else ""
        raise UserError(
            f"{name} of {type(split).__name__}", _FORMS, f"give a dataset that has a length and items{loader}"
        )
    images, labels = [], []
    for at in range(len(split)):
        image, label = _parts(split[at], f"{name}[{at}]")
        images.append(_pixels(image, f"{name}[{at}]", image_size))
        labels.append(one_label(label, f"the label of {name}[{at}]"))
    return _stacked(images, name), labels


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """Returns the image and the label of an item; further entries of a tuple are not read."""
    if isinstance(item, Mapping):
        image, label = _keys(item, name)
        return item[image], item[label]
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise UserError(f"{name} of {type(item).__name__}", "items (image, label), or dicts with both", "add the label")


def _keys(item: Mapping, name: str) -> tuple[str, str]:
    """Returns the keys of a dict's image and label. Raises UserError where more than one key may be meant, or none."""
    images, labels = ([key for key in item if key in known] for known in (_IMAGE_KEYS, _LABEL_KEYS))
    labels = labels or [key for key in item if key not in images]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"{name} with {', '.join(map(str, item)) or 'nothing'}",
            f"one of {', '.join(_IMAGE_KEYS)} and one of {', '.join(_LABEL_KEYS)}",
            "rename the keys that hold the image and its class",
        )
    return images[0], labels[0]


def _images(images: Any, name: str, image_size: int | None) -> np.ndarray:
    """Returns the pixels (N, H, W[, C]) of a split: uint8, or float32 from 0 to 255."""
    ragged = isinstance(images, np.ndarray) and images.dtype.kind in "OU"  # of several sizes, or files
    if isinstance(images, (list, tuple)) or ragged:
        return _stacked([_pixels(image, f"{name}[{at}]", image_size) for at, image in enumerate(images)], name)
    array = many_images(to_numpy(images), name)
    require_bits(array, name)
    return as_bytes_if_exact(scaled(array, name))


def _pixels(image: Any, name: str, image_size: int | None) -> np.ndarray:
    """Returns an item's image as (H, W, C)."""
    if isinstance(image, (str, Path)):
        with opened(image, f"{name}, {image}") as file:
            return _pixels(file, f"{name}, {image}", image_size)
    how = Square(image_size) if image_size else None
    if isinstance(image, Image.Image):
        return as_bytes_if_exact(read(image, natural_channels(image), how, name))
    pixels = scaled(one_image(to_numpy(image), name), name)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return square(pixels, how) if how else as_bytes_if_exact(pixels)


def _stacked(images: list[np.ndarray], name: str) -> np.ndarray:
    """Stacks images to (N, H, W), or (N, H, W, C) with several channels; grey ones among these become colour."""
    if not images:
        return np.zeros((0, 1, 1), np.uint8)
    if {image.shape[2] for image in images} == {1, 3}:
        images = [to_channels(image, 3, name) for image in images]
    shapes = {image.shape for image in images}
    if len({shape[:2] for shape in shapes}) > 1:
        some = ", ".join(f"{height}x{width}" for height, width, _ in sorted(shapes)[:3])
        raise UserError(
            f"{name} with images of several sizes, {some} (height x width)",
            "one size",
            "add the override data.image_size=PIXELS",
        )
    if len(shapes) > 1:
        some = ", ".join(map(str, sorted(shape[2] for shape in shapes)))
        raise UserError(f"{name} with images of {some} channels", "the same in all", "convert some of them")
    stacked = np.stack(images)
    return stacked[..., 0] if stacked.shape[3] == 1 else stacked


def _class_names(split: Any) -> list[str] | None:
    """Returns the names of a dataset's classes, also inside a Subset or the like; None where it has none."""
    numbers = getattr(split, "class_to_idx", None)  # torchvision's, which labels by it, whatever the order of classes
    if isinstance(numbers, Mapping) and numbers and sorted(numbers.values()) == list(range(len(numbers))):
        return [str(name) for name in sorted(numbers, key=lambda name: numbers[name])]
    classes = getattr(split, "classes", None)
    if isinstance(classes, (list, tuple, np.ndarray)) and len(classes):
        return [str(name) for name in classes]
    features = getattr(split, "features", None)  # Hugging Face's
    if isinstance(features, Mapping):
        named = [features[key].names for key in _LABEL_KEYS if getattr(features.get(key), "names", None)]
        return [str(name) for name in named[0]] if named else None
    if isinstance(getattr(split, "datasets", None), Iterable):  # a ConcatDataset
        found = [_class_names(part) for part in split.datasets]
        return found[0] if found and all(names == found[0] for names in found) else None
    inner = getattr(split, "dataset", None)
    return None if inner is None else _class_names(inner)
