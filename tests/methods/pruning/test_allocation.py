"""Allocation: how many channels each group keeps, worked out by hand, and paths on which no number rises."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from compress.methods.pruning.allocation import Curve, cheapest_path, ratio_path
from compress.methods.pruning.channel_groups import PrunableNetwork
from tests.methods.pruning.test_channel_groups import BUILDS, prunable_of, random_scores

POSITIONS = [at / 40 for at in range(41)]
SCOPES = ["local", "global", "isomorphic"]


@dataclass
class Channels:
    """A group without layers."""

    channels: int
    step: int = 1
    kind: str = ""

    def allowed(self, left: float) -> int:
        return min(self.channels, max(int(max(left, 1)) // self.step * self.step, self.step))

    def role(self) -> str:
        return self.kind


def scores(*rows: Sequence[float]) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float32) for row in rows]


@pytest.mark.parametrize("channels", [1, 5, 16, 24])
@pytest.mark.parametrize("step", [1, 4])
def test_local_takes_the_share_of_each_group(channels: int, step: int) -> None:
    groups = [Channels(channels, step), Channels(16)]
    path = ratio_path(groups, [torch.rand(channels), torch.rand(16)], "local", [None, None])
    for hundredths in range(100):
        kept = channels * (100 - hundredths) // 100
        wanted = channels if kept == channels else min(channels, max(kept // step * step, step))
        assert path(hundredths / 100) == [wanted, max(16 * (100 - hundredths) // 100, 1)]


def test_global_takes_the_lowest_scores_of_all() -> None:
    groups = [Channels(4), Channels(4), Channels(2)]
    path = ratio_path(groups, scores([0.1, 0.9, 0.2, 0.8], [0.3, 0.4, 0.5, 0.6], [2, 3]), "global", [None] * 3)
    assert path(0.0) == [4, 4, 2]
    assert path(0.2) == [2, 4, 2]  # 0.1 and 0.2
    assert path(0.5) == [2, 1, 2]
    assert path(0.6) == [2, 1, 2]  # all four of the second group may not go
    assert path(0.7) == [1, 1, 2]
    assert path(0.8) == [1, 1, 2]
    assert path(0.9) == [1, 1, 1]


def test_isomorphic_ranks_within_roles() -> None:
    groups = [Channels(4, kind="wide"), Channels(2, kind="deep"), Channels(4, kind="wide")]
    rows = scores([1, 2, 3, 4], [0.1, 0.2], [5, 6, 7, 8])
    path = ratio_path(groups, rows, "isomorphic", [None] * 3)
    assert path(0.25) == [2, 1, 4]
    assert path(0.5) == [1, 1, 4]
    assert ratio_path(groups, rows, "global", [None] * 3)(0.25) == [3, 1, 4]


@pytest.mark.parametrize("scope", SCOPES)
def test_own_shares_hold_at_every_position_and_groups_without_scores_stay(scope: str) -> None:
    groups = [Channels(8), Channels(8), Channels(8), Channels(8)]
    rows = [torch.arange(8.0), torch.arange(8.0), None, torch.arange(8.0)]
    path = ratio_path(groups, rows, scope, [0.25, 0.0, None, None])
    assert {tuple(path(position)[:3]) for position in POSITIONS} == {(6, 8, 8)}
    assert path(1.0)[3] == 1


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["residual", "concatenated", "sum", "structures"])
def test_no_number_rises_on_a_path(scope: str, name: str) -> None:
    prunable = prunable_of(BUILDS[name], 2)
    for seed in range(3):
        own = [None if at else 0.3 for at in range(len(prunable.groups))]
        path = ratio_path(prunable.groups, random_scores(prunable, seed), scope, own)
        assert_falls([path(position) for position in POSITIONS])


def assert_falls(states: list[list[int]]) -> None:
    for before, after in itertools.pairwise(states):
        assert all(more >= fewer > 0 for more, fewer in zip(before, after, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_shares_are_of_the_channels_before_the_first_cut(scope: str) -> None:
    """Half of 8 is 4: of the 6 that are left, two more go."""
    groups = [Channels(6), Channels(6)]
    rows = [torch.arange(6.0), torch.arange(6.0)]
    path = ratio_path(groups, rows, scope, [None, None], [8, 8])
    assert path(0.0) == path(0.25) == [6, 6]
    assert path(0.5) == [4, 4]


def saved(left: list[int], number: int, fewer: int) -> float:
    """One for each channel."""
    return left[number] - fewer


def states(groups: list[Channels], curves: list[Curve], start: list[int]) -> list[list[int]]:
    path = cheapest_path(groups, curves, start, saved)
    found = [path(at / 1000) for at in range(1001)]
    return [state for at, state in enumerate(found) if at == 0 or state != found[at - 1]]


def test_the_flattest_curve_is_taken_first() -> None:
    groups = [Channels(4), Channels(4)]
    curves = [[(4, 0.0), (1, 3.0)], [(4, 0.0), (2, 0.2), (1, 4.2)]]
    found = states(groups, curves, [4, 4])
    assert found == [[4, 4], [4, 3], [4, 2], [3, 2], [2, 2], [1, 2], [1, 1]]


def test_a_path_weighs_the_distance_with_what_is_saved() -> None:
    groups = [Channels(2), Channels(2)]
    curves = [[(2, 0.0), (1, 1.0)], [(2, 0.0), (1, 2.0)]]
    path = cheapest_path(groups, curves, [2, 2], lambda left, number, fewer: (1, 10)[number])
    assert [path(position) for position in (0, 0.5, 1)] == [[2, 2], [2, 1], [1, 1]]


def test_the_path_begins_at_the_start_and_leaves_groups_without_a_curve() -> None:
    groups = [Channels(8), Channels(8), Channels(8)]
    curves = [[], [(8, 0.0), (4, 1.0)], []]
    found = states(groups, curves, [6, 8, 8])
    assert found == [[6, left, 8] for left in (8, 7, 6, 5, 4)]


def test_a_step_that_saves_nothing_is_not_taken() -> None:
    path = cheapest_path([Channels(4)], [[(4, 0.0), (1, 1.0)]], [4], lambda left, number, fewer: 0.0)
    assert path(0.0) == path(1.0) == [4]


def test_a_step_goes_as_far_as_a_block_of_channels_that_costs_the_same() -> None:
    """Kernels that compute channels in blocks of 4 save nothing for 7, 6 or 5 channels, and a block for 4."""
    blocks = lambda left, number, fewer: math.ceil(left[number] / 4) - math.ceil(fewer / 4)
    path = cheapest_path([Channels(8)], [[(8, 0.0), (1, 0.7)]], [8], blocks)
    assert [path(position) for position in (0, 1)] == [[8], [4]]


def test_noise_on_a_curve_does_not_stop_the_path() -> None:
    """The outputs of the network with 4 channels come out nearer than those of the one with 6: it counts as flat."""
    groups = [Channels(8), Channels(8)]
    noisy, even = [(8, 0.0), (6, 0.5), (4, 0.2), (2, 3.0)], [(8, 0.0), (2, 1.2)]
    found = states(groups, [noisy, even], [8, 8])
    first = [state[0] for state in found]
    assert found[4] == [4, 8]  # by 0.05 a channel, where the other group costs 0.2
    assert found[10] == [4, 2]
    assert sorted(set(first)) == [2, 3, 4, 5, 6, 7, 8]


def test_costs_never_fall_along_a_path() -> None:
    """The hull of a curve is convex, so that each step of a group costs at least as much as the one before it."""
    draws = random.Random(0)
    for _ in range(20):
        groups = [Channels(16, 2), Channels(12)]
        curves = [[(group.channels, 0.0), *((left, draws.random()) for left in (10, 8, 4, 2))] for group in groups]
        path = cheapest_path(groups, curves, [16, 12], saved)
        found = [path(at / 1000) for at in range(1001)]
        assert_falls(found)
        assert found[0] == [16, 12]
        assert found[-1] == [2, 2]


def test_every_state_saves() -> None:
    prunable = prunable_of(BUILDS["residual"])
    curves = [[(group.channels, 0.0), (group.allowed(1), 1.0)] for group in prunable.groups]
    cost = lambda left: weights(prunable, left)
    gain = lambda left, number, fewer: cost(left) - cost([*left[:number], fewer, *left[number + 1 :]])
    path = cheapest_path(prunable.groups, curves, [group.channels for group in prunable.groups], gain)
    costs = [cost(path(at / 1000)) for at in range(1001)]
    assert all(before >= after for before, after in itertools.pairwise(costs))
    assert len(set(costs)) == 1 + sum(group.channels - group.allowed(1) for group in prunable.groups)


def weights(prunable: PrunableNetwork, left: list[int]) -> int:
    widths = prunable.widths(left).values()
    return sum(math.prod(width[:2]) for width in widths if len(width) > 1)


def test_a_wide_group_goes_in_few_steps() -> None:
    group = Channels(1024)
    found = states([group], [[(1024, 0.0), (512, 0.1), (1, 1.0)]], [1024])
    assert 30 <= len(found) <= 34
    assert found[-1] == [1]
