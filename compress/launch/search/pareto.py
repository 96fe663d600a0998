"""Picks the best trials of a search: the Pareto set of those that keep the constraints."""

from compress.launch.search.objectives import MINIMIZE, Goals, take_figure
from compress.launch.search.trials import COMPLETE, Trial


def is_feasible(trial: Trial, goals: Goals) -> bool:
    """Whether a complete trial keeps every constraint."""
    return all(excess <= 0 for excess in _excesses(trial, goals))


def pareto_set(trials: list[Trial], goals: Goals) -> list[Trial]:
    """Returns the feasible trials that no other feasible trial dominates, the best by the first objective first.

    A trial dominates another if it is as good in every objective and better in one. Copies of a trial are left out.
    """
    feasible = [trial for trial in _own(trials) if is_feasible(trial, goals)]
    losses = {trial.number: _losses(trial, goals) for trial in feasible}
    front = [
        trial for trial in feasible if not any(_dominates(other, losses[trial.number]) for other in losses.values())
    ]
    return sorted(front, key=lambda trial: (losses[trial.number], trial.number))


def best_trial(trials: list[Trial], goals: Goals) -> Trial | None:
    """Returns the feasible trial that is best by the first objective; further objectives decide a tie.

    Where none is feasible, returns the trial that exceeds the bounds least. Each excess counts as a share of the
    largest excess of its constraint, so that milliseconds and points can be added. None where no trial is complete.
    """
    if front := pareto_set(trials, goals):
        return front[0]
    own = _own(trials)
    if not own:
        return None
    largest = [max(column) for column in zip(*(_excesses(trial, goals) for trial in own), strict=True)]

    def distance(trial: Trial) -> float:
        shares = zip(_excesses(trial, goals), largest, strict=True)
        return sum(max(0.0, excess) / most for excess, most in shares if most > 0)

    return min(own, key=lambda trial: (distance(trial), _losses(trial, goals), trial.number))


def _own(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == COMPLETE and trial.copy_of is None]


def _excesses(trial: Trial, goals: Goals) -> list[float]:
    return [goal.excess(take_figure(trial.figures, goal.figure)) for goal in goals.constraints]


def _losses(trial: Trial, goals: Goals) -> tuple[float, ...]:
    """Returns the objectives with signs that make smaller better."""
    signs = [1 if objective.direction == MINIMIZE else -1 for objective in goals.objectives]
    figures = [take_figure(trial.figures, objective.figure) for objective in goals.objectives]
    return tuple(sign * figure for sign, figure in zip(signs, figures, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
