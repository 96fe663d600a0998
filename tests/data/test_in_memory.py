"""Data in Python in the forms that libraries give it: pairs, datasets, dicts, lists, subsets, files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from compress.data.in_memory import in_memory_arrays
from compress.utils.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
KINDS = np.arange(6) % 3
NAMES = ["ant", "bee", "cat"]


class Items(Dataset):
    """A dataset of a list."""

    def __init__(self, items: list, **attributes: Any):
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> Any:
        return self.items[at]


def zipped(images: Any, labels: Any) -> list[tuple]:
    return list(zip(images, labels, strict=True))


PILLOW = [Image.fromarray(image) for image in IMAGES]
TENSORS = torch.tensor(IMAGES).permute(0, 3, 1, 2)
FORMS = {
    "pair": (IMAGES, KINDS),
    "list of two": [IMAGES, KINDS],
    "list of arrays": (list(IMAGES), list(KINDS)),
    "list of Pillow images": [PILLOW, KINDS.tolist()],
    "tensors": (TENSORS, torch.tensor(KINDS)),
    "floats": (TENSORS.float() / 255, torch.tensor(KINDS).float()),
    "uint16": (IMAGES.astype(np.uint16) * 257, KINDS),
    "dict of columns": {"image": PILLOW, "label": KINDS},
    "TensorDataset": TensorDataset(TENSORS, torch.tensor(KINDS)),
    "list of items": zipped(PILLOW, KINDS.tolist()),
    "items in lists": [[image, kind] for image, kind in zipped(PILLOW, KINDS)],
    "labels of one element": Items(zipped(PILLOW, KINDS[:, None])),
    "one-hot": Items(zipped(PILLOW, np.eye(3)[KINDS])),
    "Hugging Face": Items([{"image": image, "label": int(kind)} for image, kind in zipped(PILLOW, KINDS)]),
    "other keys": Items([{"img": image, "fine": int(kind)} for image, kind in zipped(PILLOW, KINDS)]),
    "three parts": Items([(image, kind, "meta") for image, kind in zipped(PILLOW, KINDS)]),
}


@pytest.mark.parametrize("split", FORMS.values(), ids=FORMS)
def test_every_form_is_the_same_images(split: Any) -> None:
    arrays, classes = in_memory_arrays((split, None, split), None)
    assert classes == ["0", "1", "2"]
    for images, labels in arrays.values():
        assert images.dtype == np.uint8
        assert np.array_equal(images, IMAGES)
        assert labels.tolist() == KINDS.tolist()


def test_files_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / f"{at}.png" for at in range(6)]
    for path, image in zip(paths, PILLOW, strict=True):
        image.save(path)
    for split in ((paths, KINDS), (np.array(list(map(str, paths))), KINDS), Items(zipped(map(str, paths), KINDS))):
        assert np.array_equal(in_memory_arrays((split, None, split), None)[0]["test"][0], IMAGES)
    paths[2].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train\[2\], .*2\.png: cannot identify"):
        in_memory_arrays(((paths, KINDS), None, (paths, KINDS)), None)


def test_names_of_classes_are_found() -> None:
    named = Items(zipped(PILLOW, KINDS), classes=NAMES)
    hugging = Items(FORMS["Hugging Face"].items, features={"label": SimpleNamespace(names=NAMES), "image": None})
    for split in (
        named,
        hugging,
        Subset(named, range(6)),
        ConcatDataset([named, named]),
        Subset(Subset(named, [0, 1]), [1, 0]),
    ):
        assert in_memory_arrays((split, None, named), None)[1] == NAMES
    numbered = Items(zipped(PILLOW, KINDS), classes=NAMES[::-1], class_to_idx={"cat": 2, "ant": 0, "bee": 1})
    assert in_memory_arrays((numbered, None, named), None)[1] == NAMES
    turned = Items(zipped(PILLOW, (KINDS + 1) % 3), classes=["cat", "ant", "bee"])
    for data in ((named, turned, turned), {"train": named, "validation": turned, "test": turned}):
        arrays, classes = in_memory_arrays(data, None)
        assert classes == NAMES
        assert all(labels.tolist() == KINDS.tolist() for _, labels in arrays.values())
    with pytest.raises(UserError, match="whose classes lack ant"):
        in_memory_arrays((named, None, Items(zipped(PILLOW[1:3], [0, 1]), classes=["bee", "cat"])), None)
    with pytest.raises(UserError, match="class wasp in val"):
        in_memory_arrays((named, Items(zipped(PILLOW, KINDS), classes=["ant", "bee", "wasp"]), named), None)


def test_train_may_have_no_labels() -> None:
    arrays, classes = in_memory_arrays(((IMAGES, None), None, (IMAGES, np.array(NAMES)[KINDS])), None)
    assert classes == NAMES
    assert set(arrays["train"][1].tolist()) == {-1}


def test_images_of_several_sizes_and_kinds() -> None:
    mixed = [PILLOW[0], PILLOW[1].resize((30, 20)), PILLOW[2].convert("L"), IMAGES[3], TENSORS[4], IMAGES[5, ..., 0]]
    arrays, _ = in_memory_arrays(((mixed, KINDS), None, Items(zipped(mixed, KINDS))), 8)
    assert arrays["train"][0].shape == (6, 8, 8, 3)
    assert np.array_equal(arrays["train"][0], arrays["test"][0])
    assert np.array_equal(arrays["train"][0][2][..., 0], arrays["train"][0][2][..., 1])  # grey among colour
    with pytest.raises(UserError, match="of several sizes, 12x12, 20x30"):
        in_memory_arrays(((mixed, KINDS), None, None), None)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (np.zeros((6, 3, 28, 84)), (6, 28, 84, 3)),
        (np.zeros((6, 28, 84, 1)), (6, 28, 84, 1)),
        (np.zeros((6, 4, 9, 9)), (6, 9, 9, 4)),
        (np.zeros((6, 13, 9, 9)), (6, 9, 9, 13)),
        (np.zeros((6, 9, 9, 13)), (6, 9, 9, 13)),
        (np.zeros((6, 3, 3, 1)), (6, 3, 3, 1)),
        (np.zeros((6, 28, 84)), (6, 28, 84)),
        (np.zeros((6, 13, 9, 30)), None),
        (np.zeros((6, 3, 9, 3)), None),
        (np.zeros((6, 9, 9, 9)), None),
        (np.zeros((6, 2, 2, 30)), None),
        (np.zeros((6, 784)), None),
        (np.zeros((6, 1, 9, 9, 9)), None),
    ],
)
def test_the_axes_are_known_or_refused(images: np.ndarray, shape: tuple | None) -> None:
    split = (images.astype(np.uint8), KINDS)
    if shape:
        assert in_memory_arrays((split, None, split), None)[0]["train"][0].shape == shape
        return
    with pytest.raises(UserError, match=r"received train with images \(6, "):
        in_memory_arrays((split, None, split), None)


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ((IMAGES.astype(np.int64), KINDS), "images.astype('uint8')"),
        ((IMAGES.astype(np.float32), KINDS), "divide them by 255"),
        ((IMAGES.astype(np.uint16), KINDS), "use more than 8 bits"),
        ((IMAGES.astype(np.int16) * 100, KINDS), "images.astype('uint16')"),
        (((IMAGES - 127.0) / 128, KINDS), "before they are normalised"),
        ((np.full((6, 9, 9), np.nan), KINDS), "from nan"),
        ((IMAGES, np.ones((6, 14))), "train labels float64 (6, 14)"),
        (Items(zipped(PILLOW, np.ones((6, 14)))), "multi-label"),
        (Items(zipped(PILLOW, 0.7 + KINDS)), "train labels[0] is 0.7"),
        (Items(zipped(PILLOW, [None] * 6)), "the label of train[0] is None"),
        (Items([{"image": PILLOW[0], "fine": 1, "coarse": 0}]), "train[0] with image, fine, coarse"),
        (Items([{"pixels": PILLOW[0], "label": 1}]), "train[0] with pixels, label"),
        (Items(PILLOW), "train[0] of Image"),
        (DataLoader(Items(zipped(PILLOW, KINDS))), ".dataset"),
        ([IMAGES, KINDS, KINDS], "train[0] of ndarray"),
        ((IMAGES, 3), "train labels of type int"),
        ((IMAGES, {0, 1, 2}), "train labels of type set"),
        ((IMAGES, None), "test labels of type NoneType"),
        (Items([]), "train without images"),
        ((IMAGES[:0], KINDS[:0]), "train without images"),
    ],
)
def test_what_is_not_known_for_sure_is_refused(split: Any, part: str) -> None:
    with pytest.raises(UserError) as refusal:
        in_memory_arrays((split, None, split), None)
    assert part in str(refusal.value)
