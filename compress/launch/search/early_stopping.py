"""From which validation accuracy on a trial still has hope, judged by those that came to an end."""

import statistics
from itertools import accumulate

from compress.launch.search.objectives import Goals
from compress.launch.search.pareto import is_feasible
from compress.launch.search.trials import COMPLETE, Trial

_ENOUGH = 5  # finished trials to judge by; Optuna's median pruner waits for as many
_LEAST_POINTS = 1.0  # of validation top-1: on few images one point is an image or two


def stop_thresholds(trials: list[Trial], goals: Goals, epochs: dict[str, int]) -> dict[str, list[float]]:
    """By stage the top-1 in percent on validation, an epoch each, below which a trial of so many `epochs` may end.

    With an accuracy as the only objective, what half of the finished trials had by then (the rule of Optuna's median
    pruner). Else a trial that is less accurate may still be the better trade, unless a constraint holds accuracy up:
    then it is hopeless once it is further below the worst of those that kept all constraints than that one is below
    the best of them. Without such a goal, and before five trials to judge by, there is no floor. Test images are not
    looked at, and only trainings of the same length are compared.
    """
    finished = [trial for trial in trials if trial.state == COMPLETE and trial.copy_of is None]
    alone = len(goals.objectives) == 1 and goals.objectives[0].is_accuracy
    if not alone:
        held = any(constraint.is_accuracy_floor for constraint in goals.constraints)
        finished = [trial for trial in finished if held and is_feasible(trial, goals)]
    thresholds = {}
    for stage, count in epochs.items():
        curves = [trial.validation[stage] for trial in finished if len(trial.validation.get(stage, ())) == count]
        if count and len(curves) >= _ENOUGH:
            best_so_far = zip(*(accumulate(curve, max) for curve in curves), strict=True)
            thresholds[stage] = [_threshold(values, alone) for values in best_so_far]
    return thresholds


def _threshold(values: tuple[float, ...], alone: bool) -> float:
    if alone:
        return statistics.median(values)
    return max(0.0, min(values) - max(max(values) - min(values), _LEAST_POINTS))
