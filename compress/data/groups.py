"""Splits images so that no group, as the images of a patient, is on both sides."""

import numpy as np
import torch
from torch import Tensor


def split_by_group(strata: Tensor, groups: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the positions of (kept, held out) images, seeded; each stratum keeps an image.

    `strata` and `groups` are (N,) int64. About `fraction` of each stratum is held out: groups come in random order, and
    one is held out where that brings the counts of strata nearer to those that are wanted; then, as strata may be too
    small for that, where it brings the total nearer. One group at least is held out, if each stratum keeps an image.
    """
    members = np.unique(groups.numpy(), return_inverse=True)[1]
    kinds = np.unique(strata.numpy(), return_inverse=True)[1]
    counts = np.zeros((members.max() + 1, kinds.max() + 1))
    np.add.at(counts, (members, kinds), 1)
    totals = counts.sum(0)
    wanted, held_out, chosen = fraction * totals, np.zeros(len(totals)), np.zeros(len(counts), bool)
    order = np.random.default_rng(seed).permutation(len(counts))
    for distance in (lambda held: ((held - wanted) ** 2).sum(), lambda held: abs((held - wanted).sum())):
        for group in order[~chosen[order]]:
            more = held_out + counts[group]
            if (more < totals).all() and distance(more) < distance(held_out):
                held_out, chosen[group] = more, True
    allowed = [group for group in order if (counts[group] < totals).all()]
    if allowed and not chosen.any():
        chosen[min(allowed, key=lambda group: counts[group].sum())] = True
    outside = torch.from_numpy(chosen[members])
    return torch.nonzero(~outside).flatten(), torch.nonzero(outside).flatten()


def shared_group(groups: dict[str, Tensor]) -> tuple[int, str, str] | None:
    """Returns a group (its number) that is in two splits, and the names of these; None where each is in one."""
    seen: dict[int, str] = {}
    for split, numbers in groups.items():
        for number in numbers.unique().tolist():
            if seen.setdefault(number, split) != split:
                return number, seen[number], split
    return None
