"""Computes COCO's detection figures with torchmetrics and faster-coco-eval, which the extra `detection` installs."""

from importlib.util import find_spec
from typing import TypedDict

import numpy as np
import torch

from compress.utils.errors import UserError


class CocoFigures(TypedDict):
    """Mean average precisions in percent, None where there is no object."""

    map: float | None  # at IoUs of 0.5 to 0.95
    map50: float | None
    map_by_class: list[float | None]
    map50_by_class: list[float | None]


def coco_figures(detections: np.ndarray, targets: np.ndarray, classes: int) -> CocoFigures:
    """Returns `map` at IoUs of 0.5 to 0.95 and `map50` at 0.5, both also with `_by_class` (K,), in percent.

    `detections` (N, D, 6) have rows [class, score, x1, y1, x2, y2], `targets` (N, M, 6) rows [class, x1, y1, x2, y2,
    flag]. A figure of a class without objects is None. Raises UserError where a package is missing.
    """
    require_detection_packages()
    from torchmetrics.detection import MeanAveragePrecision

    # Without synchronization: the first of several processes alone measures, and the others would never answer.
    metric = MeanAveragePrecision(backend="faster_coco_eval", extended_summary=True, sync_on_compute=False)
    metric.update(
        [_predicted(rows[rows[:, 0] >= 0]) for rows in detections], [_true(rows[rows[:, 0] >= 0]) for rows in targets]
    )
    result = metric.compute()
    # (IoUs, recalls, classes, areas, limits of detections), -1 for a class without objects
    precision = result["precision"][..., 0, -1].double().mean(1).numpy()
    by_class = np.full((len(precision), classes), np.nan)
    by_class[:, result["classes"].reshape(-1).numpy()] = np.where(precision < 0, np.nan, 100 * precision)
    return {
        "map": _mean(by_class),
        "map50": _mean(by_class[:1]),
        "map_by_class": [_mean(column) for column in by_class.T],
        "map50_by_class": [_mean(column) for column in by_class[:1].T],
    }


def require_detection_packages() -> None:
    """Raises UserError where torchmetrics or faster-coco-eval is not installed."""
    if find_spec("torchmetrics") is None or find_spec("faster_coco_eval") is None:
        raise UserError(
            "data.task=detection without the packages torchmetrics and faster-coco-eval",
            "the extra detection installed",
            'pip install "compress[detection]"',
        )


def _predicted(rows: np.ndarray) -> dict[str, torch.Tensor]:
    values = torch.from_numpy(rows.astype(np.float32))
    return {"boxes": values[:, 2:], "scores": values[:, 1], "labels": values[:, 0].long()}


def _true(rows: np.ndarray) -> dict[str, torch.Tensor]:
    values = torch.from_numpy(rows.astype(np.float32))
    return {"boxes": values[:, 1:5], "labels": values[:, 0].long(), "iscrowd": (values[:, 5] > 0).long()}


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
