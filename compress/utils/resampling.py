"""Resamples images for the bootstrap, and turns resampled figures into intervals and p-values. Needs no torch."""

from collections.abc import Iterator

import numpy as np

_RESAMPLES, _SEED = 1000, 0
_CHUNK = 50  # resamples at a time: their weights need memory for this many numbers an image


def resamples(images: int) -> Iterator[np.ndarray]:
    """Yields the same seeded resamples in chunks (B, N): how often each is drawn of `images`, which is N."""
    generator = np.random.default_rng(_SEED)
    for _ in range(_RESAMPLES // _CHUNK):
        yield generator.multinomial(images, np.full(images, 1 / images), _CHUNK).astype(float)


def mean_over_labels(by_label: np.ndarray) -> np.ndarray:
    """Returns the mean over the labels that have a figure, along the last axis; NaN where none has one."""
    known = ~np.isnan(by_label)
    total: np.ndarray = np.where(known, by_label, 0).sum(-1)
    mean: np.ndarray = np.divide(total, known.sum(-1), out=np.full_like(total, np.nan), where=known.any(-1))
    return mean


def interval(values: np.ndarray) -> list[float]:
    """Returns the 95 % interval of resampled values, along the first axis, without those that are NaN."""
    known = values[~np.isnan(values)]
    return [float(value) for value in np.percentile(known, [2.5, 97.5])] if len(known) else [0.0, 100.0]


def p_value(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of resampled differences, for the hypothesis that both networks are equal."""
    known = differences[~np.isnan(differences)]
    less = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (less + 1) / (len(known) + 1))
