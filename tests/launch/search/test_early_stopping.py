"""When a trial is hopeless: never before there is something to judge by, and never for being the faster trade."""

from dataclasses import replace

import pytest

from compress.launch.search.early_stopping import stop_thresholds
from compress.launch.search.objectives import parse_goals
from compress.launch.search.trials import COMPLETE, Trial
from compress.training.early_stopping import check_early_stopping
from compress.utils.errors import EarlyStopped, UserError
from compress.utils.files import FAILED, GIVEN_UP

ACCURACY = "deployed_val_top1_percent"


def finished(*tops: float, delta: float = 0.0, length: int = 2, state: str = COMPLETE) -> list[Trial]:
    """Trials that had half of `tops` after the first epoch, and all of it from the second on."""
    return [
        Trial(
            at, state, {}, str(at), "here",
            {ACCURACY: top, "latency_ms_p50": 1.0, "deployed_val_delta_points": delta},
            {"distill": [top / 2, *[top] * (length - 1)]},
        )
        for at, top in enumerate(tops)
    ]  # fmt: skip


def test_with_one_accuracy_to_raise_half_of_the_trials_is_the_floor() -> None:
    goals = parse_goals([ACCURACY], [])
    trials = finished(90, 80, 70, 60, 50)
    assert stop_thresholds(trials, goals, {"distill": 2}) == {"distill": [35.0, 70.0]}
    assert stop_thresholds(trials[:4], goals, {"distill": 2}) == {}
    assert stop_thresholds(finished(90, 80, 70, 60, 50, state=FAILED), goals, {"distill": 2}) == {}
    assert stop_thresholds(finished(90, 80, 70, 60, 50, state=GIVEN_UP), goals, {"distill": 2}) == {}


def test_a_trial_is_held_to_the_best_epoch_that_others_had_by_then() -> None:
    """That epoch's weights are kept, however the training goes on."""
    trials = [replace(one, validation={"distill": [80.0, 20.0]}) for one in finished(1, 2, 3, 4, 5)]
    assert stop_thresholds(trials, parse_goals([ACCURACY], []), {"distill": 2}) == {"distill": [80.0, 80.0]}


def test_trainings_of_another_length_are_not_compared() -> None:
    goals = parse_goals([ACCURACY], [])
    trials = finished(90, 80, 70, 60, 50)
    for epochs in ({"distill": 3}, {"distill": 0}, {"prune": 2}):
        assert stop_thresholds(trials, goals, epochs) == {}


def test_several_objectives_without_a_bound_leave_hope_to_all() -> None:
    goals = parse_goals([ACCURACY, "latency_ms_p50"], ["latency_ms_p50 <= 2"])
    assert stop_thresholds(finished(90, 80, 70, 60, 50), goals, {"distill": 2}) == {}
    assert stop_thresholds(finished(90, 80, 70, 60, 50), parse_goals(["latency_ms_p50"], []), {"distill": 2}) == {}


def test_with_a_bound_on_accuracy_what_is_far_below_all_that_kept_it_is_hopeless() -> None:
    goals = parse_goals([ACCURACY, "latency_ms_p50"], ["deployed_val_delta_points >= -1"])
    good, bad = finished(98, 97, 96, 95, 94), finished(20, 20, 20, delta=-60.0)
    assert stop_thresholds(good + bad, goals, {"distill": 2}) == {"distill": [47 - 2, 94 - 4]}
    assert stop_thresholds(finished(94, 94, 94, 94, 94), goals, {"distill": 2}) == {"distill": [47 - 1, 94 - 1]}
    assert stop_thresholds(finished(98, 97, 96, 95, 94, delta=-2.0), goals, {"distill": 2}) == {}


@pytest.mark.parametrize(
    ("curve", "floors", "ends"),
    [
        ([50.0], [], False),
        ([50.0], [50.0], False),
        ([50.0], [50.1], True),
        ([], [50.1], False),
        ([60.0, 40.0], [50.0, 55.0], False),  # the best epoch is kept
        ([60.0, 40.0], [50.0, 60.5], True),
        ([10.0, 90.0], [20.0], True),
        ([90.0, 10.0], [20.0], False),
    ],
)
def test_a_run_ends_at_the_first_epoch_below_its_floor(curve: list[float], floors: list[float], ends: bool) -> None:
    if not ends:
        check_early_stopping("distill", curve, floors)
        return
    with pytest.raises(EarlyStopped, match="of the validation metric") as raised:
        check_early_stopping("distill", curve, floors)
    assert isinstance(raised.value, UserError)
