"""Labels as users have them, and classes of splits that are matched by name: right, or refused with what is wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from compress.data.labels import match_classes, to_labels
from compress.utils.errors import UserError

KINDS = np.array([0, 2, 1, 1])
FORMS = {
    "list": [0, 2, 1, 1],
    "tensor": torch.tensor(KINDS),
    "column": KINDS[:, None],
    "arrays of one element": [np.array([kind]) for kind in KINDS],
    "tensors of one element": [torch.tensor([kind]) for kind in KINDS],
    "floats that are whole": KINDS.astype(np.float32),
    "a column of such floats": torch.tensor(KINDS[:, None]).float(),
    "uint8": KINDS.astype(np.uint8),
    "bfloat16": torch.tensor(KINDS).bfloat16(),
    "one-hot": np.eye(3)[KINDS],
    "one-hot booleans": torch.tensor(np.eye(3)[KINDS]).bool(),
    "one-hot rows in a list": list(np.eye(3, dtype=int)[KINDS]),
    "whole numbers and floats": [0, 2.0, np.int64(1), True],
    "objects": KINDS.astype(object),
}


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_whole_numbers_in_any_form(labels: Any) -> None:
    found = to_labels(labels, 4, "labels")
    assert found.dtype == np.int64
    assert found.tolist() == KINDS.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog", "cow", "cow"], np.array(["cat", "dog", "cow", "cow"]), [b"cat", b"dog", b"cow", b"cow"],
        np.array(["cat", "dog", "cow", "cow"], object), [["cat"], ["dog"], ["cow"], ["cow"]],
        np.array([["cat"], ["dog"], ["cow"], ["cow"]]), np.array(["cat", "dog", "cow", "cow"], "S"),
    ],
)  # fmt: skip
def test_names_in_any_form(labels: Any) -> None:
    names = to_labels(labels, 4, "labels")
    assert names.tolist() == ["cat", "dog", "cow", "cow"]
    splits = {"train": names, "test": names[:1]}
    assert match_classes(splits, {"train": None, "test": None}) == ["cat", "cow", "dog"]
    assert [splits[name].tolist() for name in splits] == [[0, 2, 1, 1], [0]]


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ([0, 1.0, 0.7, 1], "labels[2] is 0.7; 1 of 4 are no whole numbers"),
        ([20.0, 21.5, 23.25, 25.0], "labels[1] is 21.5; 2 of 4"),
        ([0, 1, np.nan, 1], "labels[2] is nan"),
        ([0, 1, np.inf, 1], "labels[2] is inf"),
        ([0, 1, None, 1], "labels[2] is None"),
        ([0, 1, "cat", 1], "names and numbers"),
        ([0, 1, {"id": 3}, 1], "labels[2] is a dict with id"),
        ([[0, 1], [1, 1], [1, 0], [0, 1]], "labels[1] = [1, 1]"),
        ([[0, 1], [0, 0], [1, 0], [0, 1]], "labels[1] = [0, 0]"),
        ([[0.1, 0.9], [1, 0], [1, 0], [0, 1]], "labels[0] = [0.1, 0.9]"),
        ([[0, 1], [1], [1, 0], [0, 1]], "of one kind"),
        ([["a", "b"], ["c", "d"], ["a", "b"], ["a", "b"]], "one-hot"),
        ([0, 1, 2], "(3,) for 4 images"),
        (np.zeros((4, 2, 2)), "(4, 2, 2) for 4 images"),
        ([0, 20240101, 1, 1], "labels with 20240101"),
        (np.array([0, 1j, 1, 1]), "complex"),
    ],
)
def test_other_labels_are_refused_with_what_is_wrong(labels: Any, part: str) -> None:
    with pytest.raises(UserError) as refusal:
        to_labels(labels, 4, "labels")
    assert part in str(refusal.value)


def matched(
    train: Sequence, train_names: list[str] | None, test: Sequence, test_names: list[str] | None
) -> tuple[list[str], list[int]]:
    labels = {"train": np.asarray(train), "test": np.asarray(test)}
    classes = match_classes(labels, {"train": train_names, "test": test_names})
    return classes, labels["test"].tolist()


def test_classes_are_matched_by_name() -> None:
    abc = ["ant", "bee", "cat"]
    assert matched([0, 1, 2], abc, [0, 1, 2], abc) == (abc, [0, 1, 2])
    assert matched([0, 1, 2], abc, [0, 1, 2], ["cat", "ant", "bee"]) == (abc, [2, 0, 1])
    assert matched([0, 1, 2], abc, [0, 1], ["ant", "bee"]) == (abc, [0, 1])  # numbered alike
    assert matched([0, 1, 2], abc, [1, 2, 3], ["dog", *abc]) == (abc, [0, 1, 2])  # no image is of the one more
    assert matched([0, 1, 2], abc, ["cat", "ant"], None) == (abc, [2, 0])
    assert matched(["cat", "ant"], None, [1, 0], ["cat", "ant"]) == (["ant", "cat"], [0, 1])
    assert matched(["10", "9"], None, ["9"], None) == (["10", "9"], [1])
    assert matched([0, 1, 2], None, [2, 0], None) == (["0", "1", "2"], [2, 0])
    assert matched([-1, -1], None, [1, 0], None) == (["0", "1"], [1, 0])  # train has no labels
    assert matched([-1, -1], None, [1, 0], ["a", "b"]) == (["a", "b"], [1, 0])


@pytest.mark.parametrize(
    ("train", "train_names", "test", "test_names", "part"),
    [
        ([0, 1], ["ant", "bee"], [0], ["wasp"], "class wasp in test"),
        ([0, 1], ["ant", "bee"], ["wasp"], None, "class wasp in test"),
        (["ant", "bee"], None, ["bees"], None, "did you mean bee?"),
        ([0, 1, 2], ["ant", "bee", "cat"], [0, 1], ["bee", "cat"], "its bee is number 0, train's is 1"),
        ([0, 1], ["ant", "bee"], [5], ["bee", "ant"], "test with the label 5 and 2 classes"),
        (["ant", "bee"], None, [0], None, "test with numbers for labels, train with names"),
        ([0, 1], ["ant", "ant"], [0], None, "two classes called ant"),
        (["ant", "ant"], None, ["ant"], None, "the label ant for every image"),
    ],
)
def test_classes_that_do_not_match_are_refused_by_name(
    train: Sequence, train_names: list | None, test: Sequence, test_names: list | None, part: str
) -> None:
    with pytest.raises(UserError) as refusal:
        matched(train, train_names, test, test_names)
    assert part in str(refusal.value)
