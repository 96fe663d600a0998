"""What a sub-network may cost, and the widths with which it costs just that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.config.stage_settings import FILE_LIMITS
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.pruning.cost import Cost, Widths
from compress.methods.pruning.limits import FileCosts, Whole, limits_of_target
from compress.methods.pruning.search import unreachable
from compress.methods.pruning.target import Limit, meet_limits
from compress.methods.pruning.trials import Trials

# Shares of the budget, among which the search spreads: most of what it tries can be taken, and the front shows what a
# little less and a little more would bring.
_LEVELS = (1.0, 0.7, 0.85, 1.2, 1.5)
_ALL_LEVELS = (0.3, 0.1, 0.15, 0.2, 0.4, 0.5, 0.65, 0.8)  # of the MACs, where only accuracy is limited


@dataclass(frozen=True)
class Budget:
    """The limits on costs that follow from widths."""

    limits: Sequence[Limit]
    levels: Sequence[float]  # shares of the limits around which is searched
    limited: bool = True  # false: no cost is limited, and the limit stands for all of the network

    def share(self, widths: Widths) -> float:
        """Returns how much of the tightest limit a network costs; at most 1 where it meets all of them."""
        return max(limit.figure(widths) / limit.highest for limit in self.limits)

    def currency(self, widths: Widths) -> Cost:
        """Returns the cost of which a network with these widths has to save most."""
        return max(self.limits, key=lambda limit: limit.figure(widths) / limit.highest).cost

    def figures(self, widths: Widths) -> dict[str, float]:
        """Returns the figure of each limit."""
        return {limit.name: limit.figure(widths) for limit in self.limits}

    def at(self, level: float) -> "Budget":
        """Returns limits that are `level` times as high."""
        return replace(self, limits=[replace(limit, highest=level * limit.highest) for limit in self.limits])


def budget_of(space: SearchSpace, asked: dict[str, float], trials: Trials) -> Budget:
    """Returns the budget of a target. Raises UserError where the smallest sub-network misses it."""
    macs, whole = space.macs(trials.whole.macs), trials.whole
    file = FileCosts(trials.shipped, space.network, space.calls, space.twin)
    limits = limits_of_target(asked, whole, macs, space.params(), file)
    if not limits:
        return Budget([Limit("macs_share", 1.0, macs, whole.macs)], _ALL_LEVELS, limited=False)
    widths = space.widths(space.smallest)
    missed = {limit.name: limit.figure(widths) for limit in limits if limit.figure(widths) > limit.highest}
    if missed:
        raise unreachable("search_architecture", "a lower search_architecture.round_to", asked, missed)
    for limit in limits:
        if limit.name in FILE_LIMITS:  # what has to be measured is measured at once
            limit.cost.prepare(space.options())
    return Budget(limits, _LEVELS)


def fitted(space: SearchSpace, candidate: Candidate, budget: Budget) -> Candidate:
    """Scales the widths of a candidate alike, so that it costs as much of the budget as the steps of widths allow.

    Where even its smallest widths cost more, it has those.
    """
    most = max((group.channels / count for group, count in zip(space.groups, candidate.left, strict=True)), default=1.0)

    def made(left: Sequence[int]) -> Candidate:
        return replace(candidate, left=space.candidate(left, candidate.without).left)

    def path(position: float) -> list[int]:
        scale = most * (1 - position)
        return [group.allowed(scale * count) for group, count in zip(space.groups, candidate.left, strict=True)]

    return made(meet_limits(path, budget.limits, lambda left: space.widths(made(left))).left)


def costs_of(space: SearchSpace, candidate: Candidate, whole: Whole) -> dict[str, float]:
    """Returns MACs and parameters of a candidate, and their shares of the network's, as layers have them."""
    widths = space.widths(candidate)
    return whole.figures(space.macs(whole.macs).of(widths), space.params().of(widths))
