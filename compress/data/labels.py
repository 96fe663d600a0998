"""Reads labels in the forms that users have: whole numbers, names, columns, one-hot rows; matches classes by name."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.data.dataset import NO_LABEL
from compress.utils.errors import UserError
from compress.utils.image_layout import to_numpy
from compress.utils.nearest import did_you_mean

log = logging.getLogger("compress")

_EXPECTED = "one class an image, as a whole number or a name"
_MOST_CLASSES = 100_000  # ImageNet-21k has 21,841: what lies above are identifiers or measurements
_KIND_OF = {"b": "numbers", "i": "numbers", "u": "numbers", "f": "numbers", "U": "names"}


def one_label(label: Any, name: str) -> Any:
    """Returns an item's label: a number, a name or a row; an array, tensor or list of one element is unpacked."""
    if isinstance(label, (str, bytes)):
        return label.decode() if isinstance(label, bytes) else label
    if label is None:
        raise UserError(f"{name} is None", _EXPECTED, "label that image, or leave it out")
    if isinstance(label, dict):
        keys = ", ".join(map(str, label))
        raise UserError(f"{name} is a dict with {keys}", _EXPECTED, "give a dataset whose items are (image, class)")
    values = to_numpy(label)
    return values.reshape(-1)[0] if values.size == 1 else values


def to_labels(labels: Any, count: int, name: str) -> np.ndarray:
    """Returns int64 (N,), or names (N,), from `count` labels: numbers, names, a column (N, 1), or one-hot rows (N, K).

    Raises UserError for a label that is no whole number, for rows with several classes, and for another number of them.
    """
    values = labels if isinstance(labels, np.ndarray) else _stack(labels, name)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2) or len(values) != count:
        raise UserError(
            f"{name} {values.dtype} {tuple(values.shape)} for {count} images",
            f"{_EXPECTED}, ({count},)",
            "mend their shapes",
        )
    if values.dtype.kind in "OS":
        values = _of_one_kind([one_label(value, f"{name}[{at}]") for at, value in enumerate(values)], name)
    if values.ndim == 2:
        return _one_hot(values, name)
    if values.dtype.kind not in _KIND_OF:
        raise UserError(f"{name} of type {values.dtype}", _EXPECTED, "give whole numbers from 0, or names")
    return values.astype(np.str_) if values.dtype.kind == "U" else _whole(values, name)


def match_classes(labels: dict[str, np.ndarray], names: dict[str, Sequence[str] | None]) -> list[str]:
    """Replaces each split's labels, in place, by numbers of train's classes, and returns their names.

    `names` are the class names that a split brings: where these are in another order than train's, its numbers are
    matched by name. Where nothing has names, a class is called by its number. Raises UserError, with its name, for a
    class that train lacks, and where one of train's is missing from a list that is numbered otherwise.
    """
    classes, named = _classes_of_train(labels, names), labels["train"].dtype.kind == "U"
    for split, values in labels.items():
        own = names[split]
        if values.dtype.kind == "U":
            labels[split] = _numbers_of(values, classes, split)
        elif own and names["train"] is None and not named:
            if list(own) != classes:
                log.warning("the classes of %s have names, those of train have none: labels are numbers", split)
        elif own and list(own) != classes[: len(own)]:
            labels[split] = _renumbered(values, own, classes, split)
        elif own is None and named:
            raise UserError(
                f"{split} with numbers for labels, train with names", "the same in every split", "give names in both"
            )
    return classes


def _classes_of_train(labels: dict[str, np.ndarray], names: dict[str, Sequence[str] | None]) -> list[str]:
    train = labels["train"]
    unlabelled = train.dtype.kind != "U" and len(train) > 0 and bool((train == NO_LABEL).all())
    source = "test" if unlabelled and names["train"] is None else "train"
    found = names[source]
    if found is not None:
        if len(set(found)) < len(found):
            twice = next(name for name in found if list(found).count(name) > 1)
            raise UserError(f"{source} with two classes called {twice}", "a name for each class", "rename one of them")
        return list(found)
    if labels[source].dtype.kind == "U":
        classes = sorted(set(labels[source].tolist()))
        if len(classes) == 1:
            raise UserError(
                f"the label {classes[0]} for every image of {source}",
                "two classes or more",
                "add images of another class",
            )
        return classes
    return [str(label) for label in range(int(labels[source].max(initial=0)) + 1)]


def _renumbered(values: np.ndarray, own: Sequence[str], classes: Sequence[str], split: str) -> np.ndarray:
    """Returns labels (N,), which number `own`, as numbers of `classes`, by name."""
    lacking = [name for name in classes if name not in own]
    if values.max(initial=0) >= len(own):
        raise UserError(
            f"{split} with the label {values.max()} and {len(own)} classes",
            f"labels from 0 to {len(own) - 1}",
            "mend its labels or its classes",
        )
    numbers = _numbers_of(np.asarray(own), classes, split, values)
    if lacking:
        raise UserError(
            f"{split} whose classes lack {', '.join(lacking[:3])}: its {own[0]} is number 0, train's is {numbers[0]}",
            "train's classes, in any order",
            f"give {split} train's list of classes and number its labels by it, or give names for labels",
        )
    return np.where(values < 0, values, numbers[values])


def _numbers_of(found: np.ndarray, classes: Sequence[str], split: str, used: np.ndarray | None = None) -> np.ndarray:
    """The position in `classes` of each name; of names that no label in `used` needs, any."""
    positions = {name: at for at, name in enumerate(classes)}
    needed = found if used is None else found[np.unique(used[used >= 0])]
    strange = next((str(name) for name in needed if str(name) not in positions), None)
    if strange is not None:
        raise UserError(
            f"class {strange} in {split}",
            f"one of train's: {', '.join(classes[:10])}",
            f"{did_you_mean(strange, classes)}add it to train, or remove it from {split}",
        )
    return np.array([positions.get(str(name), NO_LABEL) for name in found], np.int64)


def _stack(labels: Any, name: str) -> np.ndarray:
    if hasattr(labels, "detach") or hasattr(labels, "__array__"):
        return to_numpy(labels)
    if not isinstance(labels, (list, tuple, range)):
        raise UserError(f"{name} of type {type(labels).__name__}", _EXPECTED, "give them as an array or a list")
    return _of_one_kind([one_label(label, f"{name}[{at}]") for at, label in enumerate(labels)], name)


def _of_one_kind(values: list[Any], name: str) -> np.ndarray:
    """Returns an array of labels that are all numbers, all names, or all rows of one length."""
    if not values:
        return np.zeros(0, np.int64)
    arrays = [np.asarray(value) for value in values]
    forms = {(_KIND_OF.get(array.dtype.kind, str(array.dtype)), array.shape) for array in arrays}
    if len(forms) > 1:
        some = " and ".join(f"{kind} {shape}" if shape else kind for kind, shape in sorted(forms)[:3])
        hint = "where an image has several classes, keep one" if any(shape for _, shape in forms) else "mend the others"
        raise UserError(f"{name} with {some}", f"{_EXPECTED}, of one kind", hint)
    return np.stack(arrays)


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """Returns whole numbers as int64. Raises UserError with the first number that is not whole."""
    if values.dtype.kind == "f":
        broken = np.flatnonzero(~(np.isfinite(values) & (values == np.rint(values))))
        if len(broken):
            raise UserError(
                f"{name}[{broken[0]}] is {values[broken[0]]:.6g}; {len(broken)} of {len(values)} are no whole numbers",
                f"{_EXPECTED}: a number to be predicted as it is would be regression",
                "give each image the number of its class",
            )
    if values.max(initial=0) >= _MOST_CLASSES:
        raise UserError(
            f"{name} with {values.max():.0f}", f"classes numbered from 0, fewer than {_MOST_CLASSES:,}", "number them"
        )
    return values.astype(np.int64)


def _one_hot(rows: np.ndarray, name: str) -> np.ndarray:
    """Returns the class (N,) of rows (N, K) that each have a single 1. Raises UserError for any other row."""
    numbers = rows.dtype.kind in "biuf"
    single = ((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1) if numbers else np.zeros(len(rows), bool)
    if not single.all():
        at = int(np.flatnonzero(~single)[0])
        row = ", ".join(map(str, rows[at][:8].tolist())) + (", ..." if rows.shape[1] > 8 else "")
        raise UserError(
            f"{name} {rows.dtype} {tuple(rows.shape)}, with {name}[{at}] = [{row}]",
            f"{_EXPECTED}, or one-hot rows, each with a single 1: it has several classes (multi-label), or none",
            "set data.task=multilabel, or keep the images of one class and give its number",
        )
    return rows.argmax(1).astype(np.int64)


def warn_of_missing_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Warns of classes that no image of train has; an unlabelled train split is not checked."""
    if len(labels) and int(np.max(labels)) >= 0:
        seen = np.bincount(labels[labels >= 0], minlength=len(classes))
        missing = [name for name, count in zip(classes, seen, strict=False) if count == 0]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            log.warning("no image of train is of class %s%s", ", ".join(missing[:3]), more)
