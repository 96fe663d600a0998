"""Computes the area under the ROC curve of each label, and its intervals by the bootstrap over images."""

import numpy as np

from compress.utils.resampling import resamples


def aurocs(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the AUROC of each label, (K,) in percent; NaN where all images have a label, or none has it.

    `scores` (N, K) rank the images of a label, `targets` (N, K) are 1 where an image has it. The AUROC is the share of
    pairs of an image with and one without the label that are in order; equal scores count one half (Hanley and McNeil
    1982).
    """
    by_label: np.ndarray = _weighted(scores, targets, np.ones((1, len(scores))))[0]
    return by_label


def bootstrap(*scores: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """Returns the AUROCs (B, K) of each of `scores` (N, K) on the same B seeded resamples of the images, in percent."""
    parts: list[list[np.ndarray]] = [[] for _ in scores]
    for weights in resamples(len(targets)):
        for part, values in zip(parts, scores, strict=True):
            part.append(_weighted(values, targets, weights))
    return [np.concatenate(part) for part in parts]


def _weighted(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the AUROCs (B, K) for B weightings (B, N) of the images."""
    columns = []
    for values, has in zip(scores.T, targets.T.astype(bool), strict=True):
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=np.nan))  # the first of each group of equal scores
        sorted_weights, positive = weights[:, order], has[order]
        with_label = np.add.reduceat(sorted_weights * positive, starts, axis=1)
        without = np.add.reduceat(sorted_weights * ~positive, starts, axis=1)
        below = without.cumsum(1) - without
        pairs = with_label.sum(1) * without.sum(1)
        in_order = ((below + without / 2) * with_label).sum(1)
        columns.append(np.divide(100 * in_order, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    return np.stack(columns, axis=1)
