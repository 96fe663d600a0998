"""Scores the best sub-networks of a search in full: the Pareto front, of which one is taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.methods.architecture_search.budget import Budget, costs_of, fitted
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.architecture_search.trials import Trial, pareto_front
from compress.methods.pruning.limits import Whole
from compress.utils.errors import UserError

_FINALISTS = 6  # of those within the budget
_FRONT = 8  # of all costs
_REFINEMENTS = 3  # networks between the smallest that keeps the metric and the next smaller one


@dataclass(frozen=True)
class Point:
    """A sub-network that was refitted on all images; `figures` are its costs, and `share` that of the budget."""

    candidate: Candidate
    share: float
    distance: float
    val_percent: float
    figures: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Returns it as values of JSON."""
        scored = {"share": self.share, "distance": self.distance, "val_percent": self.val_percent}
        return scored | self.figures | {"candidate": self.candidate.record()}


@dataclass(frozen=True)
class FullScore:
    """Scores candidates in full; `measure` returns the distance and the validation metric of one."""

    space: SearchSpace
    budget: Budget
    whole: Whole
    measure: Callable[[Candidate], tuple[float, float]]

    def point(self, candidate: Candidate) -> Point:
        """Returns a candidate with all its figures."""
        widths = self.space.widths(candidate)
        distance, val_percent = self.measure(candidate)
        figures = costs_of(self.space, candidate, self.whole) | self.budget.figures(widths)
        return Point(candidate, self.budget.share(widths), distance, val_percent, figures)


def full_front(trials: Sequence[Trial], full: FullScore) -> list[Point]:
    """Returns the best trials within the budget, and others that are spread over the costs, the cheapest first.

    Those that another one beats in distance and cost are left out.
    """
    affordable = sorted((trial for trial in trials if trial.share <= 1), key=lambda trial: trial.distance)
    front = pareto_front(trials)
    spread = front[:: max(1, -(-len(front) // _FRONT))]
    best = list(dict.fromkeys(trial.candidate for trial in affordable))[:_FINALISTS]
    chosen = dict.fromkeys([*best, *(trial.candidate for trial in spread)])
    return undominated([full.point(candidate) for candidate in chosen])


def undominated(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other one beats in distance and cost, the cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.share, point.distance)):
        if not front or point.distance < front[-1].distance:
            front.append(point)
    return front


def best_within(points: Sequence[Point]) -> Point:
    """Returns the point with the least distance within the budget, or the cheapest one where none is."""
    affordable = [point for point in points if point.share <= 1]
    return min(affordable, key=lambda point: point.distance) if affordable else points[0]


def smallest_that_keeps(points: Sequence[Point], least_percent: float, full: FullScore) -> Point:
    """Returns the cheapest network whose validation metric is `least_percent` or more.

    Between it and the next cheaper point, networks of its form are tried at costs in between.
    """
    kept = [point for point in points if point.val_percent >= least_percent]
    best = min(kept, key=lambda point: point.share) if kept else full.point(full.space.whole)
    low = max((point.share for point in points if point.share < best.share), default=0.0)
    for _ in range(_REFINEMENTS):
        level = (low + best.share) / 2
        tried = full.point(fitted(full.space, best.candidate, full.budget.at(level)))
        if tried.val_percent >= least_percent and tried.share < best.share:
            best = tried
        else:
            low = level
    return best


def picked(points: Sequence[Point], number: int) -> Point:
    """Returns the point of that number, from 1. Raises UserError for a number beyond the front."""
    if number > len(points):
        raise UserError(
            f"search_architecture.pick={number} with a front of {len(points)} networks",
            f"a number from 1, the cheapest, to {len(points)}, as stage.json and the report have them",
            "name one of them, or null for the best that meets the target",
        )
    return points[number - 1]
