"""Which trials of a search are worth a look: those that keep the constraints, and that no other one beats."""

from compress.launch.search.objectives import MINIMIZE, Goals, take_figure
from compress.launch.search.trials import COMPLETE, Trial


def is_feasible(trial: Trial, goals: Goals) -> bool:
    """Whether a complete trial keeps every constraint."""
    return all(excess <= 0 for excess in _excesses(trial, goals))


def pareto_set(trials: list[Trial], goals: Goals) -> list[Trial]:
    """The feasible trials that no other feasible one dominates, the best by the first objective first.

    One dominates another where it is as good in every objective and better in one. Copies of a trial are left out.
    """
    feasible = [trial for trial in _own(trials) if is_feasible(trial, goals)]
    losses = {trial.number: _losses(trial, goals) for trial in feasible}
    front = [
        trial for trial in feasible if not any(_dominates(other, losses[trial.number]) for other in losses.values())
    ]
    return sorted(front, key=lambda trial: (losses[trial.number], trial.number))


def best_trial(trials: list[Trial], goals: Goals) -> Trial | None:
    """The feasible trial that is best by the first objective, the further ones where it is a tie.

    Where none is feasible, the one that exceeds the bounds least: each excess as a share of the largest one of its
    constraint, so that milliseconds and points add up. None where no trial is complete.
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
    """The objectives, all to be made small."""
    signs = [1 if objective.direction == MINIMIZE else -1 for objective in goals.objectives]
    figures = [take_figure(trial.figures, objective.figure) for objective in goals.objectives]
    return tuple(sign * figure for sign, figure in zip(signs, figures, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
