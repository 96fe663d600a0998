"""Splits images so that no group, as the images of a patient, is on both sides."""

import numpy as np
import torch
from torch import Tensor


def split_by_group(strata: Tensor, groups: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the positions of (kept, held out) images, seeded; each stratum keeps an image.

    `strata` and `groups` are (N,) int64. About `fraction` of each stratum is held out: groups come in random order, and
    one is held out where that brings the counts of strata nearer to those that are wanted.
    """
    members = np.unique(groups.numpy(), return_inverse=True)[1]
    kinds = np.unique(strata.numpy(), return_inverse=True)[1]
    counts = np.zeros((members.max() + 1, kinds.max() + 1))
    np.add.at(counts, (members, kinds), 1)
    totals = counts.sum(0)
    wanted, held_out, chosen = fraction * totals, np.zeros(len(totals)), np.zeros(len(counts), bool)
    for group in np.random.default_rng(seed).permutation(len(counts)):
        more = held_out + counts[group]
        if (more < totals).all() and ((more - wanted) ** 2).sum() < ((held_out - wanted) ** 2).sum():
            held_out, chosen[group] = more, True
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
