"""Takes the sub-network that a target asks for, by costs, the measured file and validation."""

import time
from dataclasses import dataclass, replace
from typing import Any

from compress.config.stage_settings import FILE_LIMITS
from compress.methods.architecture_search.budget import Budget, costs_of, fitted
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.front import Point, best_within, picked, smallest_that_keeps
from compress.methods.architecture_search.search import Search
from compress.methods.pruning.search import filled
from compress.utils.errors import UserError

_FITS = 3  # of the predicted cost of a file to the measured one
_SLACK = 0.05  # a measured figure this close below its limit is near enough


@dataclass
class Choice:
    """The sub-network that is taken, and what stage.json says of the search."""

    candidate: Candidate
    notes: dict[str, Any]


def choose(search: Search, asked: dict[str, float], count: int, pick: int | None, seed: int) -> Choice:
    """Searches with `count` candidates, and takes the best one for the target, or that of number `pick` on the front.

    Without a candidate to score it takes the uniform network of the budget. Raises UserError where no network keeps
    the validation metric, and for a number beyond the front.
    """
    start = time.perf_counter()
    if not count:
        candidate = fitted(search.space, search.space.whole, search.budget)
        return Choice(candidate, {"target": _target(search, asked, candidate)})
    found, front = search.run(count, seed)
    measured: dict[str, float] = {}
    if pick is not None:
        point = picked(front, pick)
    elif search.budget.limited:
        point = best_within(front)
        point, measured = _fit_to_file(search, asked, point)
        _require_drop(search, asked, point)
    else:
        point = smallest_that_keeps(front, _least_percent(search, asked), search.full)
    number = front.index(point) + 1 if point in front else None
    rows = [{"number": at} | other.record() for at, other in enumerate(front, 1)]
    notes = {
        "target": _target(search, asked, point.candidate, measured, point.val_percent)
        | {"seconds": round(time.perf_counter() - start, 1)},
        "architectures": {
            "candidates": len(found),
            "tried": [[trial.share, trial.distance] for trial in found],
            "front": rows if number else [*rows, {"number": None} | point.record()],
            "taken": number,
            "picked": pick is not None,
        },
    }
    return Choice(point.candidate, notes)


def _target(
    search: Search,
    asked: dict[str, float],
    candidate: Candidate,
    measured: dict[str, float] | None = None,
    val_percent: float | None = None,
) -> dict[str, Any]:
    """Returns what was asked for and what was reached, as the stage prune notes it."""
    widths = search.space.widths(candidate)
    figures = search.budget.figures(widths)
    predicted = {name: figure for name, figure in figures.items() if name in FILE_LIMITS}
    costs = costs_of(search.space, candidate, search.trials.whole)
    drop = None
    if "max_drop_points" in asked and val_percent is not None:
        drop = search.trials.whole_val_percent - val_percent
    return {
        "asked": asked,
        "reached": figures | costs | dict.fromkeys(FILE_LIMITS) | predicted | (measured or {}) | {"drop_points": drop},
        "predicted": predicted,
        "measured": measured or {},
        "search": [],
    }


def _fit_to_file(search: Search, asked: dict[str, float], point: Point) -> tuple[Point, dict[str, float]]:
    """Returns the point, or one of its form, whose measured file meets the limits, and the file's figures.

    The file is written and timed; the limits on what is predicted are then corrected by what was measured.
    """
    of_file = {name: asked[name] for name in FILE_LIMITS if name in asked}
    if not of_file:
        return point, {}
    tried: list[tuple[float, Candidate, dict[str, float]]] = []
    candidate, space = point.candidate, search.space
    for _ in range(_FITS):
        measured = search.trials.shipped().measure(space.build(candidate, search.scores)[0])
        share = max(filled(name, measured[name], limit) for name, limit in of_file.items())
        tried.append((share, candidate, measured))
        if 1 - _SLACK <= share <= 1:
            break
        candidate = fitted(space, candidate, _corrected(search.budget, space.widths(candidate), measured))
    _, candidate, measured = min(tried, key=lambda one: (one[0] > 1, abs(1 - one[0])))
    return point if candidate == point.candidate else search.full.point(candidate), measured


def _corrected(budget: Budget, widths: dict[str, list[int]], measured: dict[str, float]) -> Budget:
    """Returns limits on the predictions that stand for the limits on the measured figures."""
    limits = [
        replace(limit, highest=limit.highest * limit.figure(widths) / measured[limit.name])
        if limit.name in measured
        else limit
        for limit in budget.limits
    ]
    return replace(budget, limits=limits)


def _least_percent(search: Search, asked: dict[str, float]) -> float:
    return search.trials.whole_val_percent - asked["max_drop_points"]


def _require_drop(search: Search, asked: dict[str, float], point: Point) -> None:
    """Raises UserError where a network within the limits on costs loses more than `max_drop_points`."""
    if "max_drop_points" not in asked or point.val_percent >= _least_percent(search, asked):
        return
    drop = search.trials.whole_val_percent - point.val_percent
    raise UserError(
        f"search_architecture.target.max_drop_points={asked['max_drop_points']:g} with limits on costs, within which "
        f"the best network of {100 * point.figures['macs_share']:.1f} % of the MACs loses {drop:.2f} points",
        "limits that such a network keeps",
        f"raise max_drop_points to {drop:.2f}, or leave it out: the epochs after the refit win points back",
    )
