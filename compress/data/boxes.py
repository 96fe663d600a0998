"""Holds the targets of detection: rows of class, box and flag for each image, padded to the same number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compress.data.dataset import NO_LABEL
from compress.utils.detections import PADDING
from compress.utils.errors import UserError

CLASS, FLAG = 0, 5  # columns of a target
BOX = slice(1, 5)  # x1, y1, x2, y2 in pixels of the image that the network reads
OBJECT, DIFFICULT, CROWD = 0, 1, 2  # flags: difficult ones are trained and not scored, crowds are neither

_EXPECTED = "boxes in annotation files, data=voc or data=coco"
_MEND = "set data=voc or data=coco, or leave data.task out"


def pad_boxes(rows: list[np.ndarray]) -> torch.Tensor:
    """Returns targets (N, M, 6), float32, from the rows (n, 6) of each image; M is 1 or more."""
    padded = np.full((len(rows), max([1, *map(len, rows)]), 6), PADDING, np.float32)
    for target, found in zip(padded, rows, strict=True):
        target[: len(found)] = found
    return torch.from_numpy(padded)


def refuse_arrays(labels: Any, count: int, name: str) -> np.ndarray:
    """Raises UserError: arrays hold no boxes."""
    raise UserError(f"{name} in arrays with data.task=detection", _EXPECTED, _MEND)


def refuse_names(labels: dict[str, np.ndarray], names: dict[str, Sequence[str] | None]) -> list[str]:
    """Raises UserError: arrays hold no boxes."""
    raise UserError("arrays with data.task=detection", _EXPECTED, _MEND)


def check_boxes(labels: dict[str, torch.Tensor], classes: int, source: str) -> None:
    """Raises UserError for a split without images, and for one without an object to score; train may be unlabelled."""
    for split, targets in labels.items():
        if targets.ndim != 3:
            raise UserError(
                f"data.task=detection with {source}, whose images have one class each or a row of labels",
                _EXPECTED,
                _MEND,
            )
        if not len(targets):
            raise UserError(f"{source}: no images in {split}", "at least one", "add images to that split")
        if split == "train" and bool((targets == NO_LABEL).all()):
            continue
        if not bool(((targets[..., CLASS] >= 0) & (targets[..., FLAG] == OBJECT)).any()):
            raise UserError(
                f"{source}: no box in {split}",
                "at least one, which is neither difficult nor a crowd",
                "annotate images of that split",
            )


def rarest_class(targets: torch.Tensor) -> torch.Tensor:
    """Returns the rarest class (N,) in each image of targets (N, M, 6), to stratify by; -1 where it has no box."""
    numbers = targets[..., CLASS].long()
    present = numbers >= 0
    if not bool(present.any()):
        return torch.full((len(targets),), -1)
    counts = torch.bincount(numbers[present])
    ranks = counts.argsort(stable=True).argsort()  # 0 for the rarest class
    row = torch.where(present, ranks[numbers.clamp_min(0)], len(counts)).argmin(1, keepdim=True)
    return numbers.gather(1, row)[:, 0].clamp_min(-1)
