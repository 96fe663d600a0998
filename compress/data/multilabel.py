"""Reads and checks the targets of images with any number of labels: rows of 0 and 1, a column a label."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compress.data.dataset import NO_LABEL
from compress.data.labels import one_label
from compress.utils.errors import UserError
from compress.utils.image_layout import to_numpy

log = logging.getLogger("compress")

_EXPECTED = "a row of 0 and 1 an image, a column a label"


def to_rows(labels: Any, count: int, name: str) -> np.ndarray:
    """Returns int64 (N, K) of 0 and 1, from an array or a list of rows. Raises UserError for anything else."""
    if isinstance(labels, (list, tuple)):
        rows = [to_numpy(one_label(label, f"{name}[{at}]")) for at, label in enumerate(labels)]
        if len({row.shape for row in rows}) > 1:
            raise UserError(
                f"{name} with rows of several lengths", _EXPECTED, "give each image a value for every label"
            )
        labels = np.stack(rows) if rows else np.zeros((0, 1))
    values = to_numpy(labels)
    if values.ndim != 2 or len(values) != count or values.dtype.kind not in "biuf":
        raise UserError(
            f"{name} {values.dtype} {tuple(values.shape)} for {count} images with data.task=multilabel",
            f"{_EXPECTED}, ({count}, K)",
            "mend their shapes, or set data.task=classification for one class an image",
        )
    strange = np.argwhere((values != 0) & (values != 1))
    if len(strange):
        row, column = strange[0]
        raise UserError(f"{name}[{row}][{column}] = {values[row, column]}", _EXPECTED, "write 1 where an image has it")
    return values.astype(np.int64)


def name_labels(labels: dict[str, np.ndarray], names: dict[str, Sequence[str] | None]) -> list[str]:
    """Returns the labels' names: train's, else test's, else their numbers. Raises UserError where splits differ."""
    widths = {split: rows.shape[1] for split, rows in labels.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{width} in {split}" for split, width in widths.items())
        raise UserError(f"labels in other numbers: {found}", "the same columns in every split", "add what is missing")
    given = names["train"] or names["test"]
    width = widths["train"]
    if given and len(given) != width:
        raise UserError(f"{len(given)} names for {width} labels", "a name for each", "mend the names")
    return list(given) if given else [str(number) for number in range(width)]


def check_rows(labels: dict[str, torch.Tensor], classes: int, source: str) -> None:
    """Raises UserError for a split without images, and for one in which no label is both there and missing.

    Labels that are the same for all images of a split are logged: no figure counts them. Train may have no target.
    """
    for split, rows in labels.items():
        if rows.ndim != 2:
            raise UserError(
                f"data.task=multilabel with {source}, whose images have one class each",
                f"{_EXPECTED}, as data=npz can hold",
                "leave data.task out",
            )
        if not len(rows):
            raise UserError(f"{source}: no images in {split}", "at least one", "add images to that split")
        if split == "train" and bool((rows == NO_LABEL).all()):
            continue
        one_sided = [number for number in range(classes) if len(rows[:, number].unique()) < 2]
        if len(one_sided) == classes:
            raise UserError(
                f"{source}: each label is the same for all images of {split}",
                "images with and without a label, for one label at least",
                "add images to that split",
            )
        if one_sided:
            log.warning("%s: label %s is the same for all images", split, ", ".join(map(str, one_sided[:5])))


def rarest(labels: torch.Tensor) -> torch.Tensor:
    """Returns the rarest label of each image (N,), to stratify by; K where an image has none."""
    order = labels.clamp_min(0).sum(0).argsort()
    ranked = labels[:, order] > 0
    return torch.where(ranked.any(1), order[ranked.long().argmax(1)], labels.shape[1])
