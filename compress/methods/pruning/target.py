"""Finds the least cut along a path that meets every limit, by bisection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compress.methods.pruning.allocation import Path
from compress.methods.pruning.cost import Cost, Widths

_HALVINGS = 20  # positions closer than a millionth are the same network


@dataclass(frozen=True)
class Limit:
    """A figure of the pruned network, and the highest that it may have."""

    name: str  # as in prune.target: "macs_share"
    highest: float
    cost: Cost
    whole: float = 1.0  # the figure is the cost divided by this

    def figure(self, widths: Widths) -> float:
        """Returns the figure of a network with these widths."""
        return self.cost.of(widths) / self.whole


@dataclass
class Search:
    """A finished search: the number of channels that stay in each group, and the tries that led there."""

    left: list[int]
    tries: list[dict[str, Any]] = field(default_factory=list)
    met: bool = True  # false: `left` is the smallest network there is, and it meets not all limits


def meet_limits(path: Path, limits: Sequence[Limit], widths_of: Callable[[list[int]], Widths]) -> Search:
    """Returns the first network on `path` that meets all `limits`, or its last one where none does.

    The groups that shrink last are then taken one by one, in order of the cost that they save, so that the result
    comes as near to the limits as the steps of single layers allow.
    """
    tries: list[dict[str, Any]] = []

    def meets(left: list[int], position: float | None = None) -> bool:
        widths = widths_of(left)
        figures = {limit.name: limit.figure(widths) for limit in limits}
        met = all(figures[limit.name] <= limit.highest for limit in limits)
        if position is not None:
            tries.append({"position": position} | figures | {"met": met})
        return met

    if meets(path(0.0), 0.0):
        return Search(path(0.0), tries)
    if not meets(path(1.0), 1.0):
        return Search(path(1.0), tries, met=False)
    low, high = bisect(path, meets, _HALVINGS)
    return Search(_between(path(low), path(high), meets), tries)


def bisect(path: Path, is_small_enough: Callable[[list[int], float], bool], halvings: int) -> tuple[float, float]:
    """Returns two positions next to each other, of which the second one's network is small enough."""
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        left = path(middle)
        if left in (path(low), path(high)):
            low, high = (middle, high) if left == path(low) else (low, middle)
        elif is_small_enough(left, middle):
            high = middle
        else:
            low = middle
    return low, high


def _between(larger: list[int], smaller: list[int], meets: Callable[[list[int]], bool]) -> list[int]:
    """Shrinks the groups of `larger` to `smaller` one by one, the last ones first, until the limits are met."""
    left = list(larger)
    for number in reversed(range(len(left))):
        if left[number] != smaller[number]:
            left[number] = smaller[number]
            if meets(left):
                break
    return left
