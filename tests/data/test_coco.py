"""COCO's format as COCO, CVAT and Roboflow write it: each layout is found, ids are mapped, and mistakes are named."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.boxes import BOX, CLASS, CROWD, FLAG, PADDING
from compress.data.dataset import NO_LABEL, Data
from compress.utils.errors import UserError
from tests.data.drawings import HEIGHT, WIDTH, write_image

SIZE = 20
CATEGORIES = {0: "animals", 7: "dog", 3: "cat"}  # Roboflow's supercategory has no box of its own
LAYOUTS = {  # json and folder of images of a split, by their names in that layout
    "coco": ("annotations/instances_{}2017.json", "{}2017", ("train", "val", "test")),
    "coco without years": ("annotations/instances_{}.json", "images/{}", ("train", "val", "test")),
    "annotations": ("annotations/{}.json", "{}", ("train", "val", "test")),
    "images below": ("annotations/{}.json", "images/{}", ("train", "val", "test")),
    "roboflow": ("{}/_annotations.coco.json", "{}", ("train", "valid", "test")),
    "root": ("{}.json", "images", ("train", "val", "test")),
}


def content(split: str, count: int = 6, categories: dict[int, str] | None = None) -> dict[str, Any]:
    """Returns a json's content: cats and dogs in turn, an object each."""
    images = [{"id": 10 + at, "file_name": f"{split}{at}.png", "width": WIDTH, "height": HEIGHT} for at in range(count)]
    boxes = [
        {"id": at, "image_id": 10 + at, "category_id": (3, 7)[at % 2], "bbox": [10, 5, 20, 10], "iscrowd": 0}
        for at in range(count)
    ]
    named = [{"id": number, "name": name} for number, name in (categories or CATEGORIES).items()]
    return {"images": images, "annotations": boxes, "categories": named}


def write(root: Path, layout: str = "annotations", only: Sequence[str] = ("train", "val", "test")) -> Path:
    """Writes some splits in a layout, under their names in it."""
    file, folder, names = LAYOUTS[layout]
    for name in names:
        if name[:3] in [split[:3] for split in only]:
            images, path = root / folder.format(name), root / file.format(name)
            images.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content(name)))
            for image in content(name)["images"]:
                write_image(images / image["file_name"])
    return root


def change(root: Path, split: str, **changes: Any) -> None:
    """Replaces lists of a split's json, or an item of one: `annotations={2: {...}}` updates the third."""
    path = root / "annotations" / f"{split}.json"
    found = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del found[key]
        elif isinstance(value, dict):
            for at, items in value.items():
                found[key][at] |= items
        else:
            found[key] = value
    path.write_text(json.dumps(found))


def load(root: Path, **settings: object) -> Data:
    settings = {"task": "detection", "image_size": SIZE, "workers": 0, "batch_size": 4} | settings
    return load_data(DataConfig(name="coco", root=str(root), **settings), 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(tmp_path: Path, layout: str) -> None:
    data = load(write(tmp_path, layout))
    assert data.sizes == {"train": 6, "val": 6, "test": 6}
    assert data.val_from == "own"
    assert data.classes == ["cat", "dog"]
    assert data.train.labels[0].tolist() == [[0, 5, 5, 15, 15, 0]]
    assert data.test.labels[:, 0, CLASS].tolist() == [0, 1] * 3
    assert all(len(images) for images, _ in data.val.batches())


@pytest.mark.parametrize("below", ["coco", "datasets/coco"])
def test_the_folder_is_found_one_or_two_levels_below(tmp_path: Path, below: str) -> None:
    write(tmp_path / below)
    assert load(tmp_path).sizes["train"] == 6


@pytest.mark.parametrize("layout", ["coco", "roboflow"])
def test_val_serves_as_test_where_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str) -> None:
    write(tmp_path, layout, ("train", "val"))
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "image_info_test2017.json").write_text("{}")  # COCO's test images have no boxes
    with caplog.at_level(logging.INFO, "compress"):
        data = load(tmp_path)
    assert data.sizes == {"train": 4, "val": 2, "test": 6}
    assert data.val_from == "train"
    assert "val serves as test, and validation is held out of train" in caplog.text


def test_with_train_alone_a_test_split_is_drawn(tmp_path: Path) -> None:
    data = load(write(tmp_path, only=("train",)), test_fraction=0.4)
    assert data.sizes == {"train": 2, "val": 2, "test": 2}
    assert data.test.labels[:, 0, CLASS].tolist() == [0, 1]


def test_categories_without_a_box_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "compress"):
        load(write(tmp_path))
    assert "left out categories without a box in any split: animals" in caplog.text


def test_a_split_that_numbers_its_categories_otherwise_is_matched_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    change(tmp_path, "test", categories=[{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}])
    assert load(tmp_path).test.labels[:, 0, CLASS].tolist() == [1, 0] * 3


def test_crowds_are_flagged_and_images_without_boxes_kept(tmp_path: Path) -> None:
    write(tmp_path)
    boxes = content("train")["annotations"]
    boxes[1] |= {"image_id": 10, "iscrowd": 1, "bbox": [0, 0, 40, 20]}
    change(tmp_path, "train", annotations=boxes)
    labels = load(tmp_path).train.labels
    assert labels[0].tolist() == [[0, 5, 5, 15, 15, 0], [1, 0, 0, 20, 20, CROWD]]
    assert (labels[1] == PADDING).all()
    assert (labels[2, 1] == PADDING).all()


def test_boxes_outside_are_clipped_or_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    change(tmp_path, "train", annotations={0: {"bbox": [30, 5, 20, 10]}, 1: {"bbox": [50, 5, 20, 10]}})
    with caplog.at_level(logging.WARNING, "compress"):
        labels = load(tmp_path).train.labels
    assert labels[0, 0, BOX].tolist() == [15, 5, 20, 15]
    assert (labels[1] == PADDING).all()
    assert "clipped: 1 (train.json: [30, 5, 50, 15] of cat)" in caplog.text
    assert "left out: 1 (train.json: [50, 5, 70, 15] of dog)" in caplog.text


@pytest.mark.parametrize("annotations", [None, []])
def test_train_may_be_unlabelled(tmp_path: Path, annotations: list | None) -> None:
    write(tmp_path)
    change(tmp_path, "train", annotations=annotations, categories=None)
    data = load(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert not data.labelled
    assert (data.train.labels == NO_LABEL).all()


def test_the_fingerprint_sees_a_pixel_and_a_box(tmp_path: Path) -> None:
    plain = load(write(tmp_path)).fingerprint
    write_image(tmp_path / "train" / "train0.png", (10, 5, 30, 16))
    changed = load(tmp_path).fingerprint
    change(tmp_path, "train", annotations={0: {"bbox": [10, 5, 20, 11]}})
    assert len({plain, changed, load(tmp_path).fingerprint}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": {2: {"category_id": 5}}}, r"test\.json: annotation 2: category_id 5; expected an id among"),
        ({"annotations": {2: {"category_id": [3]}}}, r"annotation 2: category_id \[3\]"),
        ({"annotations": {2: {"bbox": [0, 0, float("nan"), 5]}}}, r"annotation 2: bbox \[0, 0, nan, 5\]"),
        ({"annotations": {2: {"bbox": [0, 0, 5]}}}, r"annotation 2: bbox \[0, 0, 5\]"),
        ({"annotations": {2: {"bbox": None}}}, "annotation 2: bbox None"),
        ({"annotations": {2: {"bbox": ["a", 0, 1, 1]}}}, "annotation 2: bbox"),
        ({"annotations": {2: {"image_id": 99}}}, "an annotation of image_id 99"),
        ({"annotations": {2: {"image_id": None}}}, r"test\.json: image_id None in"),
        ({"annotations": []}, r"test\.json: no box in test"),
        ({"annotations": None}, r"test\.json without annotations"),
        ({"annotations": 3}, r"test\.json whose annotations are no list of dicts"),
        ({"images": None}, r"test\.json with the keys annotations, categories"),
        ({"images": {1: {"width": HEIGHT, "height": WIDTH}}}, r"test1\.png, 40x20 pixels.*expected 20x40.*test\.json"),
        ({"images": {1: {"file_name": "away.png"}}}, r"test\.json with .*away\.png, which is missing"),
        ({"images": {0: {"file_name": "away.png"}}}, r"test\.json with the image away\.png, which is missing"),
        ({"images": {1: {"id": 10}}}, "two images with the id 10"),
        ({"categories": {0: {"name": "dog"}}}, "categories dog, dog, cat; expected another id and another name"),
        ({"categories": {1: {"name": "dogs"}}}, r"test\.json: class dogs in test; expected one of train's: cat, dog"),
        ({"categories": {1: {"name": None}}}, r"test\.json: name None in"),
    ],
)
def test_a_mistake_in_a_json_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path)
    change(tmp_path, "test", **changes)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_json_is_named(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "annotations" / "test.json").write_text(text)
    with pytest.raises(UserError, match=r"test\.json"):
        load(tmp_path)


def test_two_jsons_of_a_split_are_refused(tmp_path: Path) -> None:
    write(write(tmp_path), "coco")
    with pytest.raises(
        UserError, match=r"annotations/train\.json, annotations/instances_train2017\.json; expected one"
    ):
        load(tmp_path)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path, only=("val", "test"))
    with pytest.raises(UserError, match=r"with annotations, test, val; expected annotations/instances_train2017\.json"):
        load(tmp_path)


def test_files_of_a_json_may_have_other_ids_than_numbers(tmp_path: Path) -> None:
    write(tmp_path)
    for split in ("train", "val", "test"):
        found = content(split)
        for key, items in (("id", found["images"]), ("image_id", found["annotations"])):
            for item in items:
                item[key] = f"image {item[key]}"
        change(tmp_path, split, **found)
    assert torch.equal(load(tmp_path).train.labels[:, 0, FLAG], torch.zeros(6))
