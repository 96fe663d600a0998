"""Intervals and tests of accuracies: on a few hundred images an accuracy alone says little."""

import math

from scipy.special import bdtr

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, in percent (Wilson 1927). Raises ValueError for a count of 0."""
    if count == 0:
        raise ValueError("an interval needs one trial or more, received 0")
    share, square = successes / count, _Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z95 / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def paired_difference(gained: int, lost: int, count: int) -> tuple[float, tuple[float, float]]:
    """Returns the difference of two accuracies on the same images, in points, with its 95 % interval.

    Only the new network is right on `gained` images, only the old one on `lost`. The interval is Wald's after half a
    count is added to each of the four cells, which holds its level for few discordant pairs (Agresti and Min 2005).
    """
    if count == 0:
        raise ValueError("a difference needs one pair or more, received 0")
    up, down, total = gained + 0.5, lost + 0.5, count + 2
    middle = (up - down) / total
    half = _Z95 * math.sqrt(max(0.0, up + down - (up - down) ** 2 / total)) / total
    return 100 * (gained - lost) / count, (100 * max(-1.0, middle - half), 100 * min(1.0, middle + half))


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Returns the probability of so uneven a split of the discordant pairs if both networks are equally good.

    McNemar's test (1947) in its exact, two-sided form; `gained` and `lost` as in `paired_difference`.
    """
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
