"""Chooses from what confidence images leave: calibrates each exit, then seeks the lowest mean cost within a limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.tasks.calibration import fit_temperature
from compress.utils.exit_names import NEVER

_TRIES = 400  # combinations of the thresholds of all exits but the last, for each of which the last one's is computed
_LEAST_GAP = 1e-6  # between confidences that a threshold can tell apart


@dataclass(frozen=True)
class Choice:
    """A temperature and a threshold for each exit, and what they came to on the images they were chosen on."""

    temperatures: list[float]
    thresholds: list[float]
    leaves: Tensor  # (N,), the end at which each image leaves: an exit's number, from 0, or the number of exits


def choose(ends: Sequence[Tensor], labels: Tensor, macs: Sequence[int], max_drop_points: float) -> Choice:
    """Returns the calibrated thresholds of the lowest mean MACs at which top-1 falls by at most `max_drop_points`.

    `ends` are the logits (N, K) of each exit and of the end, `labels` (N,) the classes, and `macs` what an image costs
    that leaves there, in ascending order. Top-1 is compared with that of the end alone.
    """
    *exits, end = ends
    temperatures = [fit_temperature(logits, labels) for logits in exits]
    confidences = [confidence(logits, at) for logits, at in zip(exits, temperatures, strict=True)]
    lost = [(logits.argmax(1) != labels).long() - (end.argmax(1) != labels).long() for logits in exits]
    budget = int(max_drop_points / 100 * len(labels) + 1e-9)
    levels = [_Level(*level) for level in zip(confidences, lost, macs, strict=False)]
    tries = round(_TRIES ** (1 / max(1, len(levels) - 1)))
    thresholds = _cheapest(levels, macs[-1], budget, torch.arange(len(labels)), tries)[1]
    return Choice(temperatures, thresholds, leaves(confidences, thresholds))


def confidence(logits: Tensor, temperature: float) -> Tensor:
    """Returns the probability of the likeliest class, (N,), of logits (N, K) divided by the temperature."""
    return (logits / temperature).softmax(1).amax(1)


def leaves(confidences: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """Returns the first exit whose threshold an image's confidence (N,) reaches, or the number of exits, (N,)."""
    found = torch.full_like(confidences[0], len(thresholds), dtype=torch.int64)
    for at in reversed(range(len(thresholds))):
        found[confidences[at] >= thresholds[at]] = at
    return found


@dataclass(frozen=True)
class _Level:
    """An exit as the search sees it."""

    confidence: Tensor  # (N,)
    lost: Tensor  # (N,): 1 where it is wrong and the end is right, -1 where only it is right
    macs: int


def _cheapest(levels: list[_Level], end_macs: int, budget: int, rows: Tensor, tries: int) -> tuple[float, list[float]]:
    """Returns the lowest MACs of the images `rows` together, and the thresholds of `levels` with which they come.

    At most `budget` more of them may be wrong than at the end; the MACs are infinite where no choice keeps that.
    """
    level, later = levels[0], levels[1:]
    order = rows[level.confidence[rows].argsort(descending=True, stable=True)]
    ranked = level.confidence[order].double()
    lost = torch.cat([torch.zeros(1, dtype=torch.int64), level.lost[order].cumsum(0)])
    splits = torch.ones(len(order) + 1, dtype=torch.bool)
    splits[1:-1] = ranked[:-1] - ranked[1:] > _LEAST_GAP
    counts = splits.nonzero()[:, 0]  # how many may leave: equal confidences leave together
    if later:
        spread = torch.linspace(0, len(counts) - 1, tries).round().long().unique()
        found = []
        for count in counts[spread].tolist():
            rest = _cheapest(later, end_macs, budget - int(lost[count]), order[count:], tries)
            found.append((count * level.macs + rest[0], [_threshold(ranked, count), *rest[1]]))
        return min(found, key=lambda pair: pair[0])
    kept = counts[lost[counts] <= budget].tolist()
    if not kept:
        return float("inf"), [NEVER]
    return kept[-1] * level.macs + (len(rows) - kept[-1]) * end_macs, [_threshold(ranked, kept[-1])]


def _threshold(ranked: Tensor, count: int) -> float:
    """Returns the threshold at which so many images leave, half-way to the next one; `ranked` are confidences (N,)."""
    if count == 0:
        return NEVER
    return ranked[count - 1 : count + 1].mean().item()
