"""The Pareto set against brute force and against Optuna's own; the best trial where nothing is feasible."""

import itertools
import random

import optuna
import pytest

from compress.launch.search.objectives import Goals, parse_goals
from compress.launch.search.pareto import best_trial, is_feasible, pareto_set
from compress.launch.search.trials import COMPLETE, Trial
from compress.utils.files import FAILED, GIVEN_UP


def trial(number: int, state: str = COMPLETE, copy_of: int | None = None, **figures: float) -> Trial:
    return Trial(number, state, {}, str(number), "here", figures, copy_of=copy_of)


def some_trials(seed: int, names: tuple[str, ...]) -> list[Trial]:
    """Few distinct values, so that ties and equals are common."""
    chance = random.Random(seed)
    return [trial(at, **{name: float(chance.randint(0, 4)) for name in names}) for at in range(chance.randint(1, 25))]


GOALS = [
    (["macs"], []),
    (["top1_percent", "macs"], []),
    (["top1_percent", "macs"], ["size_bytes <= 2"]),
    (["top1_percent", "macs", "latency_ms_p50"], ["size_bytes <= 3", "top1_percent >= 1"]),
]


@pytest.mark.parametrize(("objectives", "constraints"), GOALS, ids=lambda texts: str(len(texts)))
@pytest.mark.parametrize("seed", range(30))
def test_no_trial_of_the_set_is_beaten_and_every_other_is(
    objectives: list[str], constraints: list[str], seed: int
) -> None:
    goals = parse_goals(objectives, constraints)
    trials = some_trials(seed, ("macs", "top1_percent", "latency_ms_p50", "size_bytes"))
    feasible = [one for one in trials if all(_kept(one, text) for text in constraints)]

    def beats(one: Trial, other: Trial) -> bool:
        signs = {"top1_percent": -1}
        pairs = [(signs.get(name, 1) * one.figures[name], signs.get(name, 1) * other.figures[name])
                 for name in objectives]  # fmt: skip
        return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)

    expected = {one.number for one in feasible if not any(beats(other, one) for other in feasible)}
    assert {one.number for one in pareto_set(trials, goals)} == expected
    assert expected == _by_optuna(trials, goals)


def _kept(one: Trial, text: str) -> bool:
    name, relation, bound = text.split()
    return one.figures[name] <= float(bound) if relation == "<=" else one.figures[name] >= float(bound)


def _by_optuna(trials: list[Trial], goals: Goals) -> set[int]:
    study = optuna.create_study(directions=[objective.direction for objective in goals.objectives])
    for one in trials:
        study.add_trial(
            optuna.create_trial(
                values=[one.figures[objective.figure] for objective in goals.objectives],
                constraints={str(goal): goal.excess(one.figures[goal.figure]) for goal in goals.constraints},
            )
        )
    return {trial.number for trial in study.best_trials}


@pytest.mark.parametrize("seed", range(10))
def test_the_best_is_the_first_of_the_set(seed: int) -> None:
    goals = parse_goals(["top1_percent", "macs"], [])
    trials = some_trials(seed, ("macs", "top1_percent"))
    best = best_trial(trials, goals)
    assert best == pareto_set(trials, goals)[0]
    assert best.figures["top1_percent"] == max(one.figures["top1_percent"] for one in trials)


def test_only_complete_trials_count_and_each_once() -> None:
    goals = parse_goals(["macs"], [])
    trials = [trial(0, FAILED), trial(1, GIVEN_UP), trial(2, macs=2.0), trial(3, copy_of=2, macs=2.0)]
    assert [one.number for one in pareto_set(trials, goals)] == [2]
    assert best_trial(trials[:2], goals) is None


def test_where_none_is_feasible_the_nearest_is_the_best() -> None:
    """Units do not count: a point of accuracy is not a byte."""
    goals = parse_goals(["macs"], ["top1_delta_points >= -1", "size_bytes <= 1e6"])
    far = trial(0, macs=1.0, top1_delta_points=-9.0, size_bytes=1e6)
    near = trial(1, macs=5.0, top1_delta_points=-0.5, size_bytes=1.1e6)  # 100,000 bytes, an eighth of the worst
    wide = trial(2, macs=2.0, top1_delta_points=0.0, size_bytes=1.8e6)
    for order in itertools.permutations([far, near, wide]):
        assert best_trial(list(order), goals) == near
    assert not any(is_feasible(one, goals) for one in (far, near, wide))
    assert pareto_set([far, near, wide], goals) == []


def test_a_bound_that_is_met_exactly_is_kept() -> None:
    goals = parse_goals(["macs"], ["top1_delta_points >= -1"])
    assert is_feasible(trial(0, macs=1.0, top1_delta_points=-1.0), goals)
