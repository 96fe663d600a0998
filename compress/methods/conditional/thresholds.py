"""Chooses from what confidence images leave: calibrates each exit, then seeks the lowest confidence within a limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.tasks.calibration import fit_temperature
from compress.utils.exit_names import NEVER

_TRIES = 2000
_LEAST_GAP = 1e-6  # between confidences that a threshold can tell apart


@dataclass(frozen=True)
class Choice:
    """A temperature and a threshold for each exit, and what they came to on the images they were chosen on."""

    temperatures: list[float]
    thresholds: list[float]
    leaves: Tensor  # (N,), the end at which each image leaves: an exit's number, from 0, or the number of exits


def choose(ends: Sequence[Tensor], labels: Tensor, macs: Sequence[int], max_drop_points: float) -> Choice:
    """Returns temperatures, and the lowest confidence at which images leave any exit with that loss of top-1 or less.

    `ends` are the logits (N, K) of each exit and of the end, `labels` (N,) the classes, and `macs` what an image costs
    that leaves there, in ascending order. Top-1 is compared with that of the end alone. All exits share the confidence,
    which the temperatures make comparable: a threshold for each fits the validation images and no others. It is sought
    from above and no further than the first one that loses too much, because later luck does not make up for that.
    """
    exits = ends[:-1]
    temperatures = [fit_temperature(logits, labels) for logits in exits]
    confidences = torch.stack([confidence(logits, at) for logits, at in zip(exits, temperatures, strict=True)])
    wrong = torch.stack([logits.argmax(1) != labels for logits in ends]).long()
    budget = int(max_drop_points / 100 * len(labels) + 1e-9)
    chosen = NEVER
    for threshold in _levels(confidences):
        taken = wrong.gather(0, leaves(confidences, [threshold] * len(exits))[None])
        if int(taken.sum() - wrong[-1].sum()) > budget:
            break
        chosen = threshold
    thresholds = [chosen] * len(exits)
    return Choice(temperatures, thresholds, leaves(confidences, thresholds))


def _levels(confidences: Tensor) -> list[float]:
    """Returns thresholds half-way between neighbouring confidences (E, N), from the highest, at most _TRIES of them."""
    ranked = confidences.double().flatten().unique().flip(0)
    lower = torch.cat([ranked[1:], ranked.new_zeros(1)])
    apart = ranked - lower > _LEAST_GAP
    between = ((ranked + lower) / 2)[apart]
    spread = torch.linspace(0, len(between) - 1, min(len(between), _TRIES)).round().long()
    return between[spread].tolist()


def confidence(logits: Tensor, temperature: float) -> Tensor:
    """Returns the probability of the likeliest class, (N,), of logits (N, K) divided by the temperature."""
    return (logits / temperature).softmax(1).amax(1)


def leaves(confidences: Sequence[Tensor] | Tensor, thresholds: Sequence[float]) -> Tensor:
    """Returns the first exit whose threshold an image's confidence (N,) reaches, or the number of exits, (N,)."""
    found = torch.full_like(confidences[0], len(thresholds), dtype=torch.int64)
    for at in reversed(range(len(thresholds))):
        found[confidences[at] >= thresholds[at]] = at
    return found
