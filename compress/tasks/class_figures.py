"""Counts what a classifier finds of each class, so that rare classes are seen beside frequent ones."""

from typing import Any

import numpy as np

from compress.utils.resampling import interval, resamples


def class_figures(predicted: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """Returns the recall, precision and F1 of each class and their means, in percent, from class numbers (N,).

    A class without an image has none of them (null) and goes into no mean. Balanced accuracy is the mean recall, with
    its 95 % interval by the bootstrap over images.
    """
    right = predicted == labels
    images = np.bincount(labels, minlength=classes)
    found = np.bincount(labels[right], minlength=classes)
    taken = np.bincount(predicted, minlength=classes)
    there = images > 0
    recall, precision = (
        np.divide(100 * found, total, out=np.zeros(classes), where=total > 0) for total in (images, taken)
    )
    f1 = np.divide(200 * found, images + taken, out=np.zeros(classes), where=images + taken > 0)
    by_class = {"recall": recall, "precision": precision, "f1": f1}
    return {
        "deployed_balanced_accuracy_percent": float(recall[there].mean()),
        "deployed_balanced_accuracy_ci95_percent": interval(_resampled_mean_recall(right, labels)),
        "deployed_macro_f1_percent": float(f1[there].mean()),
        **{
            f"deployed_{name}_by_class_percent": [
                float(value) if known else None for value, known in zip(values, there, strict=True)
            ]
            for name, values in by_class.items()
        },
    }


def _resampled_mean_recall(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns balanced accuracy on each resample of the images, (B,), in percent."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))  # the first image of each class
    parts = []
    for weights in resamples(len(labels)):
        times = weights[:, order]
        images, found = (np.add.reduceat(values, starts, 1) for values in (times, times * right[order]))
        drawn = images > 0
        recall = np.divide(found, images, out=np.zeros(images.shape), where=drawn)
        parts.append(100 * recall.sum(1) / drawn.sum(1))
    return np.concatenate(parts)


def operating_point(
    val: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], specificity: float
) -> dict[str, float | None]:
    """Returns the sensitivity and the specificity on test images of a threshold that validation images set.

    `val` and `test` are scores (N,), from 0 to 1, and whether an image has the class, (N,). The threshold is the lowest
    score whose specificity on the validation images is at least `specificity`, a share; null where none of these lacks
    the class.
    """
    scores, has = val
    without = np.sort(scores[~has])
    if not len(without):
        return {"threshold": None, "sensitivity_percent": None, "specificity_percent": None}
    allowed = int((1 - specificity) * len(without) + 1e-9)  # false alarms
    quiet = without[: len(without) - allowed]  # must not be called
    threshold = float(np.nextafter(quiet[-1], np.inf)) if len(quiet) else 0.0
    called, truly = test[0] >= threshold, test[1]
    share = lambda values: float(100 * values.mean()) if len(values) else None
    return {
        "threshold": threshold,
        "sensitivity_percent": share(called[truly]),
        "specificity_percent": share(~called[~truly]),
    }


def operating_points(
    val: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], specificity: float
) -> list[dict[str, float | None]]:
    """Returns the `operating_point` of each class from scores (N, K) and which classes an image has, (N, K)."""
    columns = zip(val[0].T, val[1].T > 0, test[0].T, test[1].T > 0, strict=True)
    return [operating_point((scores, has), (others, truly), specificity) for scores, has, others, truly in columns]
