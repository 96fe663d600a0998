"""Spreads a cut over the groups of channels.

A path leads from the whole network to a small one: a function of a position in [0, 1] that returns how many channels of
each group stay. No number ever rises on the way.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from compress.methods.pruning.channel_groups import ChannelGroup

_ROUNDING = 1e-6  # 10 * (1 - 0.8) is below 2 in floating point

Path = Callable[[float], list[int]]
Curve = Sequence[tuple[int, float]]  # (channels that stay, distance of the network's outputs)


def ratio_path(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor | None],
    scope: str,
    own: Sequence[float | None],
    whole: Sequence[int] | None = None,
) -> Path:
    """Returns the path whose position is the share of the channels that go, of `whole` where some went before.

    local: of each group. global: of all, those with the lowest scores. isomorphic: of all in groups of one role (Fang
    et al. 2024, arXiv:2407.04616). A group with its `own` share loses that at every position, and one without scores
    nothing.
    """
    whole = whole or [group.channels for group in groups]
    roles = [group.role() if scope == "isomorphic" else "" for group in groups]
    pools: dict[str, Tensor] = {}
    totals = dict.fromkeys(roles, 0)
    for role in totals:
        members = [number for number, other in enumerate(roles) if other == role and scores[number] is not None]
        pools[role] = torch.cat([torch.zeros(0), *(scores[number] for number in members)]).sort().values
        totals[role] = sum(whole[number] for number in members)

    def at(ratio: float) -> list[int]:
        limits = {role: _limit(pool, totals[role], ratio) for role, pool in pools.items()}
        left = []
        for number, group in enumerate(groups):
            share, score = own[number], scores[number]
            if score is None:
                gone = 0
            elif scope == "local" or share is not None:
                before = whole[number] - group.channels
                gone = _share(whole[number], ratio if share is None else share) - before
            else:
                gone = int((score <= limits[roles[number]]).sum())
            left.append(group.allowed(group.channels - gone) if gone > 0 else group.channels)
        return left

    return at


def _limit(pool: Tensor, whole: int, ratio: float) -> float:
    """Returns the score up to which channels of a pool go, so that the share `ratio` of `whole` channels is gone."""
    count = _share(whole, ratio) - (whole - len(pool))
    return float(pool[count - 1]) if count > 0 else -math.inf


def _share(count: int, ratio: float) -> int:
    """Returns how many of `count` are removed."""
    return count - int(count * (1 - ratio) + _ROUNDING)


class Shrinkable(Protocol):
    """What shrinks in steps along a path: channels that go together, or the rank of a layer."""

    @property
    def channels(self) -> int:
        """The number of the whole."""
        ...

    @property
    def step(self) -> int:
        """The number that stays is a multiple of this, or the whole."""
        ...

    def allowed(self, left: float) -> int:
        """Returns the nearest number below `left` that may stay."""
        ...


def cheapest_path(
    groups: Sequence[Shrinkable],
    curves: Sequence[Curve],
    start: Sequence[int],
    saved: Callable[[list[int], int, int], float],
) -> Path:
    """Returns the path along which each step costs the least distance for what it saves, from `start` channels on.

    A curve has the distance of the network's outputs for numbers of channels that stay in that group alone; a group
    with an empty one stays as it starts. `saved(left, number, fewer)` is what a network with `left` channels saves if
    the group of that number keeps `fewer`. Distances of several groups are taken to add up.
    """
    hulls = [_hull(group, curve) if curve else {} for group, curve in zip(groups, curves, strict=True)]
    left = list(start)
    states = [list(left)]
    while True:
        best, choice = math.inf, None
        for number, hull in enumerate(hulls):
            # Not the next number alone: kernels work on blocks of channels, so that one less may save nothing and
            # several less a block.
            for fewer in (count for count in reversed(hull) if count < left[number]):
                gain = saved(left, number, fewer)
                price = (hull[fewer] - hull[left[number]]) / gain if gain > 0 else math.inf
                if price < best * (1 - _TIE):
                    best, choice = price, (number, fewer)
        if choice is None:
            return lambda position: states[round(position * (len(states) - 1))]
        left[choice[0]] = choice[1]
        states.append(list(left))


_TIE = 1e-9  # of a price: prices this close are equal, and the smaller step is taken
_MOST_STEPS = 32  # of a group: finer ones save less than a layer's kernels can use


def _hull(group: Shrinkable, curve: Curve) -> dict[int, float]:
    """Returns the distance at every step of a group, the lowest first, from the lower convex hull of a curve.

    The hull evens out noise.
    """
    lefts, distances = zip(*sorted(curve), strict=True)
    # The outputs never come closer with fewer channels; where a curve says so, it is noise.
    falling = np.maximum.accumulate(distances[::-1])[::-1]
    corners: list[int] = []
    for at in range(len(lefts)):
        while len(corners) > 1 and _slope(lefts, falling, corners[-2], corners[-1]) >= _slope(
            lefts, falling, corners[-1], at
        ):
            corners.pop()
        corners.append(at)
    step = group.step * math.ceil(group.channels / (_MOST_STEPS * group.step))
    counts = sorted({group.allowed(left) for left in range(lefts[0], group.channels, step)} | {group.channels})
    values = np.interp(counts, [lefts[at] for at in corners], [falling[at] for at in corners])
    return dict(zip(counts, values.tolist(), strict=True))


def _slope(lefts: Sequence[int], values: np.ndarray, one: int, other: int) -> float:
    return (values[other] - values[one]) / (lefts[other] - lefts[one])
