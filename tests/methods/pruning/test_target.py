"""The search along a path: its network meets all limits, and one that is a step larger does not."""

import random

import pytest

from compress.methods.pruning.allocation import Path, ratio_path
from compress.methods.pruning.cost import Cost
from compress.methods.pruning.limits import part_of_the_way
from compress.methods.pruning.target import Limit, bisect, meet_limits
from tests.methods.pruning.test_channel_groups import BUILDS, prunable_of, random_scores

SIZES = [20, 12, 30]
WEIGHTS = {"a": 3.0, "b": 10.0, "c": 1.0}
COST = Cost(lambda name, width: WEIGHTS[name] * width[0], rest=7.0)
COUNT = Cost(lambda name, width: width[0])
WHOLE = 20 * 3 + 12 * 10 + 30 + 7


def widths(left: list[int]) -> dict[str, list[int]]:
    return {name: [count] for name, count in zip("abc", left, strict=True)}


def even(position: float) -> list[int]:
    """All groups shrink alike, at other positions."""
    return [max(1, round(size * (1 - position))) for size in SIZES]


def steep(position: float) -> list[int]:
    """All groups shrink at once, so that the path has few networks."""
    third = int(position * 3.999)
    return [size - size * third // 4 for size in SIZES]


def limit(name: str, highest: float, cost: Cost = COST, whole: float = 1.0) -> Limit:
    return Limit(name, highest, cost, whole)


def meets(limits: list[Limit], left: list[int]) -> bool:
    return all(each.figure(widths(left)) <= each.highest for each in limits)


def larger_neighbours(path: Path, left: list[int]) -> list[list[int]]:
    """The networks in which one group is as large as it was a step of the path before."""
    found = [path(at / 2000) for at in range(2001)]
    before = [state for state in found if all(a >= b for a, b in zip(state, left, strict=True)) and state != left]
    last = before[-1]
    groups = [at for at in range(len(left)) if last[at] > left[at]]
    return [[last[at] if at == number else count for at, count in enumerate(left)] for number in groups[:1]]


@pytest.mark.parametrize("path", [even, steep])
def test_the_first_network_that_meets_a_limit_is_found(path: Path) -> None:
    draws = random.Random(0)
    for _ in range(30):
        limits = [limit("macs_share", draws.uniform(0.45, 0.99), whole=WHOLE)]
        search = meet_limits(path, limits, widths)
        assert search.met
        assert meets(limits, search.left)
        assert not any(meets(limits, other) for other in larger_neighbours(path, search.left))
        for row in search.tries:
            assert row["macs_share"] == limits[0].figure(widths(path(row["position"])))
            assert row["met"] == (row["macs_share"] <= limits[0].highest)


def test_all_of_several_limits_are_met() -> None:
    draws = random.Random(1)
    bound: set[str] = set()
    for _ in range(30):
        limits = [
            limit("macs_share", draws.uniform(0.3, 0.9), whole=WHOLE),
            limit("params_share", draws.uniform(0.3, 0.9), COUNT, sum(SIZES)),
        ]
        search = meet_limits(even, limits, widths)
        assert meets(limits, search.left)
        (other,) = larger_neighbours(even, search.left)
        missed = [each.name for each in limits if each.figure(widths(other)) > each.highest]
        assert missed
        bound.update(missed)
        assert set(search.tries[0]) == {"position", "macs_share", "params_share", "met"}
    assert bound == {"macs_share", "params_share"}


def test_a_network_that_meets_all_limits_stays_whole() -> None:
    search = meet_limits(even, [limit("macs_share", 1.0, whole=WHOLE)], widths)
    assert search.left == SIZES
    assert search.tries == [{"position": 0.0, "macs_share": 1.0, "met": True}]


def test_what_cannot_be_reached_returns_the_smallest_network() -> None:
    search = meet_limits(even, [limit("macs_share", 0.05, whole=WHOLE)], widths)
    assert not search.met
    assert search.left == [1, 1, 1]
    assert [row["met"] for row in search.tries] == [False, False]


def test_the_last_groups_shrink_first_between_two_networks() -> None:
    """From [20, 12, 30] to [15, 9, 23] at once: 217 to 165; the third group alone saves 7, with the second 37."""
    assert steep(0.3) == [15, 9, 23]
    for highest, wanted in ((211, [20, 12, 23]), (210, [20, 12, 23]), (209, [20, 9, 23]), (170, [15, 9, 23])):
        assert meet_limits(steep, [limit("macs", highest)], widths).left == wanted


def test_bisection_returns_two_positions_next_to_each_other() -> None:
    asked: list[float] = []

    def small_enough(left: list[int], position: float) -> bool:
        asked.append(position)
        return left[0] <= 7

    low, high = bisect(even, small_enough, 30)
    assert even(low)[0] == 8
    assert even(high)[0] == 7
    assert high - low < 1e-6
    assert len({tuple(even(position)) for position in asked}) == len(asked)  # no network is judged twice
    assert len(asked) <= 6


def test_a_path_through_a_network_meets_shares_of_its_weights() -> None:
    prunable = prunable_of(BUILDS["residual"])
    path = ratio_path(prunable.groups, random_scores(prunable), "global", [None] * len(prunable.groups))
    cost = Cost(lambda name, width: width[0] * width[1] if len(width) > 1 else 0)
    whole = cost.of(prunable.before)
    for share in (0.9, 0.5, 0.2):
        search = meet_limits(path, [limit("params_share", share, cost, whole)], prunable.widths)
        assert search.met
        assert 0.7 * share < cost.of(prunable.widths(search.left)) / whole <= share


def test_steps_go_the_same_part_on_a_logarithmic_scale() -> None:
    """A quarter in two steps: a half first; from there the rest of the way. A limit that is met stays met."""
    prunable = prunable_of(BUILDS["residual"])
    cost = Cost(lambda name, width: float(width[0]) if name == "first" else 0.0)
    limits = [limit("macs_share", 0.25, cost, 16), limit("params_share", 2.0, cost, 16)]
    first = part_of_the_way(limits, prunable, 1 / 2)
    assert [each.highest for each in first] == [pytest.approx(0.5), 1.0]
    assert [each.highest for each in part_of_the_way(limits, prunable, 1.0)] == [pytest.approx(0.25), 1.0]
