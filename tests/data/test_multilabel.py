"""Rows of labels as users have them, refused where they are none; and a split that keeps rare labels in both parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.dataset import stratified_split
from compress.data.in_memory import in_memory_arrays
from compress.data.multilabel import rarest, to_rows
from compress.utils.errors import UserError
from tests.conftest import labelled_arrays

ROWS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    "labels",
    [ROWS, ROWS.astype(bool), ROWS.astype(np.float32), ROWS.tolist(), torch.tensor(ROWS), list(torch.tensor(ROWS))],
    ids=["integers", "booleans", "floats", "lists", "a tensor", "a list of tensors"],
)
def test_rows_in_any_form(labels: Any) -> None:
    found = to_rows(labels, 3, "labels")
    assert found.dtype == np.int64
    assert found.tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (np.array([0, 2, 1]), r"\(3,\) for 3 images with data.task=multilabel.*set data.task=classification"),
        (ROWS[:2], r"\(2, 3\) for 3 images"),
        (2 * ROWS, r"labels\[0\]\[0\] = 2"),
        ([[1, 0], [1], [0, 1]], "rows of several lengths"),
    ],
)
def test_what_is_no_row_of_0_and_1_is_refused(labels: Any, part: str) -> None:
    with pytest.raises(UserError, match=part):
        to_rows(labels, 3, "labels")


def test_a_split_keeps_rare_labels_in_both_parts() -> None:
    rows = torch.zeros(200, 3, dtype=torch.int64)
    rows[::2, 0], rows[::5, 1], rows[:6, 2] = 1, 1, 1
    assert rarest(rows)[:3].tolist() == [2, 2, 2]
    assert rarest(torch.zeros(2, 3)).tolist() == [3, 3]
    train, val = stratified_split(rarest(rows), 0.3, 0)
    assert rows[val, 2].sum() == 2
    assert rows[train, 2].sum() == 4


def test_an_npz_of_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **labelled_arrays())
    config = DataConfig(name="npz", root=str(tmp_path / "rows.npz"), task="multilabel", image_size=8)
    data = load_data(config, 0)
    assert (data.task, data.classes) == ("multilabel", ["0", "1", "2"])
    assert data.train.labels.shape == (len(data.train), 3)
    with pytest.raises(UserError, match=r"it has several classes \(multi-label\).*set data.task=multilabel"):
        load_data(DataConfig(name="npz", root=str(tmp_path / "rows.npz"), image_size=8), 0)


def test_a_data_set_of_one_class_an_image_is_refused(tiny_npz: Path) -> None:
    with pytest.raises(UserError, match="multilabel with digits, whose images have one class each"):
        load_data(DataConfig(name="digits", task="multilabel"), 0)


def test_a_label_that_is_the_same_everywhere_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = labelled_arrays()
    arrays["test_labels"][:, 1] = 0
    np.savez(tmp_path / "rows.npz", **arrays)
    load_data(DataConfig(name="npz", root=str(tmp_path / "rows.npz"), task="multilabel", image_size=8), 0)
    assert "test: label 1 is the same for all images" in caplog.text
    arrays["test_labels"][:] = 1
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(UserError, match="each label is the same for all images of test"):
        load_data(DataConfig(name="npz", root=str(tmp_path / "rows.npz"), task="multilabel", image_size=8), 0)


def test_rows_in_memory() -> None:
    arrays = labelled_arrays()
    pairs = [(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")]
    found, classes = in_memory_arrays((pairs[0], None, pairs[1]), None, "multilabel")
    assert classes == ["0", "1", "2"]
    assert found["train"][1].tolist() == arrays["train_labels"].tolist()
