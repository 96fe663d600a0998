"""The validation accuracy below which a trial is stopped early, judged by the trials that finished."""

import statistics
from itertools import accumulate

from compress.launch.search.objectives import Goals
from compress.launch.search.pareto import is_feasible
from compress.launch.search.trials import COMPLETE, Trial

_ENOUGH = 5  # finished trials to judge by; the default of Optuna's MedianPruner
_LEAST_POINTS = 1.0  # of the validation metric: on few images one point is an image or two


def stop_thresholds(trials: list[Trial], goals: Goals, epochs: dict[str, int]) -> dict[str, list[float]]:
    """Returns for each stage the validation metric in percent, one value an epoch, below which a trial may end.

    `epochs` has the number of epochs of each stage; only trainings of the same length are compared. With an accuracy
    as the only objective, the threshold is the median of the finished trials' best values so far (the rule of
    Optuna's MedianPruner). With several objectives a less accurate trial may still be the better trade-off. A
    threshold then exists only where a constraint sets a minimum accuracy: a trial ends when its gap to the worst
    feasible trial exceeds the gap between the worst and the best feasible trial. Stages with fewer than five trials
    to judge by have no threshold. Test images are never used.
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
