"""Targets of detection: padded, stratified by the rarest class, and refused where a data set cannot hold boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.boxes import CROWD, pad_boxes, rarest_class
from compress.data.dataset import NO_LABEL
from compress.utils.errors import UserError
from compress.utils.images import Square, preprocess, square
from tests.data.drawings import write_image


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_another_task_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"data={name} with data\.task=classification; expected detection"):
        load_data(DataConfig(name=name, root=str(tmp_path)), 0)


@pytest.mark.parametrize("name", ["voc", "coco"])
@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_a_missing_root_is_refused(name: str, folder: str | None) -> None:
    with pytest.raises(UserError, match=rf"received data\.root={folder}"):
        load_data(DataConfig(name=name, root=folder, task="detection"), 0)


def test_detection_in_arrays_is_refused(tmp_path: Path) -> None:
    arrays = {f"{split}_images": np.zeros((4, 8, 8), np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "data.npz", **arrays, train_labels=np.arange(4), test_labels=np.arange(4))
    with pytest.raises(UserError, match=r"in arrays with data\.task=detection; expected boxes in annotation files"):
        load_data(DataConfig(name="npz", root=str(tmp_path / "data.npz"), task="detection"), 0)


def test_detection_in_class_folders_is_refused(tmp_path: Path) -> None:
    for folder in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / folder).mkdir(parents=True)
        write_image(tmp_path / folder / "0.png")
    with pytest.raises(UserError, match=r"data\.task=detection with .*, whose images have one class each"):
        load_data(DataConfig(name="imagefolder", root=str(tmp_path), task="detection", workers=0), 0)


def test_the_rarest_class_of_each_image() -> None:
    rows = [[[0, 0]], [[0, 0], [2, 0]], [], [[1, 0], [0, 0]], [[1, CROWD]]]
    targets = pad_boxes([np.array([[number, 0, 0, 5, 5, flag] for number, flag in row]).reshape(-1, 6) for row in rows])
    assert rarest_class(targets).tolist() == [0, 2, -1, 1, 1]
    assert rarest_class(torch.full((2, 1, 6), float(NO_LABEL))).tolist() == [-1, -1]


@pytest.mark.parametrize("size", [(40, 20), (16, 16), (9, 31)])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_the_whole_image_is_stretched_in_files_and_arrays(size: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling[interpolation.upper()]))
    assert np.array_equal(square(pixels, Square(16, 0.5, interpolation, "stretch")), wanted)
    described = {"shape": [3, 16, 16], "mean": [0] * 3, "std": [1] * 3, "interpolation": interpolation}
    for image in (pixels, Image.fromarray(pixels)):
        found = preprocess(image, described | {"resize": "stretch", "crop_share": 0.5})
        assert np.array_equal(np.rint(found * 255).transpose(1, 2, 0), wanted)
        cropped = preprocess(image, described | {"resize": "crop"})
        assert np.array_equal(cropped, preprocess(image, described))
        assert np.array_equal(cropped, preprocess(image, described | {"resize": "stretch"})) == (size == (16, 16))
