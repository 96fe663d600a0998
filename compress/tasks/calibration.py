"""Compares how sure a classifier is with how often it is right, and fits the temperature that brings both together."""

from typing import Any

import numpy as np
from torch import Tensor

from compress.data.dataset import NO_LABEL
from compress.utils.missing import Unavailable

_LARGEST_SCALE = 1000.0  # of logits: a temperature of a thousandth
_HALVINGS = 60
_FIGURES = (
    "temperature", "deployed_calibration_error_percent", "deployed_calibration_error_at_temperature_percent"
)  # fmt: skip
_BINS = 15  # as Guo et al. have


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature of the lowest cross-entropy (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    In the scale 1 / T the cross-entropy is convex, so the root of its slope is found by halving.
    """
    logits = logits.double()
    right = logits.gather(1, labels[:, None]).mean()

    def slope(scale: float) -> float:
        return float(((logits * scale).softmax(1) * logits).sum(1).mean() - right)

    low, high = 1 / _LARGEST_SCALE, _LARGEST_SCALE
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / low


def calibration_figures(val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float | Unavailable]:
    """Returns the temperature of the validation images, and the calibration error of the test images without and with.

    Both are logits (N, K) and class numbers (N,). Where all validation images are right, no finite temperature fits.
    Nothing is known where they have no labels.
    """
    if bool((val[1] == NO_LABEL).any()):
        return dict.fromkeys(_FIGURES, Unavailable("the validation images have no labels of their own"))
    (val_logits, val_labels), (logits, labels) = val, test
    fits = bool((val_logits.argmax(1) != val_labels).any())
    temperature = fit_temperature(val_logits, val_labels) if fits else 1.0
    right = (logits.argmax(1) == labels).numpy()
    errors = [
        calibration_error_percent((logits.double() / at).softmax(1).amax(1).numpy(), right) for at in (1.0, temperature)
    ]
    none = Unavailable("all validation images are right: no finite temperature fits them best")
    return dict(zip(_FIGURES, [temperature if fits else none, errors[0], errors[1] if fits else none], strict=True))


def applied_temperature(figures: dict[str, Any]) -> float:
    """Returns the temperature of `calibration_figures` that probabilities are computed with: 1 where none fits."""
    found = figures["temperature"]
    return 1.0 if isinstance(found, Unavailable) else float(found)


def calibration_error_percent(confidences: np.ndarray, right: np.ndarray) -> float:
    """Returns the mean gap between confidence (N,), from 0 to 1, and the share that is `right` (N,), 0 or 1.

    Decisions are compared in 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """
    bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, confidences - right, minlength=_BINS)
    return float(100 * np.abs(gaps).sum() / len(confidences))
