"""Reads and checks targets, by the task that data.task names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from compress.data.boxes import check_boxes, rarest_class, refuse_arrays, refuse_names
from compress.data.dataset import check_labels
from compress.data.labels import match_classes, to_labels
from compress.data.multilabel import check_rows, name_labels, rarest, to_rows


@dataclass(frozen=True)
class Targets:
    """The functions that read and check the targets of one task."""

    read: Callable[[Any, int, str], np.ndarray]  # (labels, number of images, name for errors) -> array
    # (labels, class names) of each split -> the class names; labels that are names become numbers, in place.
    name: Callable[[dict[str, np.ndarray], dict[str, Sequence[str] | None]], list[str]]
    check: Callable[[dict[str, torch.Tensor], int, str], None]
    strata: Callable[[torch.Tensor], torch.Tensor]  # (N, ...) -> (N,): the groups whose shares a split keeps


TARGETS = {
    "classification": Targets(to_labels, match_classes, check_labels, lambda labels: labels),
    "multilabel": Targets(to_rows, name_labels, check_rows, rarest),
    "detection": Targets(refuse_arrays, refuse_names, check_boxes, rarest_class),
}
