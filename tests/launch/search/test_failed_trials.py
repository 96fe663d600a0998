"""Trials that fail, are given up, lack a figure or cannot be composed: the search goes on, or says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.config.schema import Config
from compress.launch.search.trials import COMPLETE
from compress.utils.errors import EarlyStopped, UserError
from compress.utils.files import FAILED, GIVEN_UP, read_json
from tests.launch.search.fake import FakeRuns, accuracy_and_time, fake_search


def failing(wrong: Callable[[dict[str, Any]], bool], error: Exception) -> FakeRuns:
    def figures(settings: dict[str, Any]) -> dict[str, float]:
        if wrong(settings):
            raise error
        return accuracy_and_time(settings)

    return FakeRuns(figures)


FAULT = "stopped by a fault of its own: RuntimeError: out of memory"


def test_a_trial_that_fails_is_kept_with_its_error_and_the_search_goes_on(tmp_path: Path) -> None:
    runs = failing(lambda settings: settings["distill.alpha"] == "1.0", RuntimeError("out of memory"))
    trials = fake_search(tmp_path, runs, trials=8).all()
    failed = [trial for trial in trials if trial.state == FAILED]
    assert {trial.settings["distill.alpha"] for trial in failed} == {"1.0"}
    assert {trial.reason for trial in failed} == {FAULT}
    assert len(trials) == 8
    rows = read_json(tmp_path / "pareto.json")["failed"]
    assert [row["trial"] for row in rows] == [trial.number for trial in failed]
    assert rows[0]["reason"] == FAULT


def test_a_search_in_which_all_fail_is_a_failure(tmp_path: Path) -> None:
    runs = failing(lambda settings: True, UserError("a bad thing", "a good one", "mend it"))
    with pytest.raises(UserError, match="none of 3 trials came to an end, the last one because: received a bad thing"):
        fake_search(tmp_path, runs, trials=3)
    assert len(read_json(tmp_path / "pareto.json")["failed"]) == 3
    assert not (tmp_path / "best.yaml").exists()


def test_a_trial_that_is_given_up_is_no_failure(tmp_path: Path) -> None:
    hopeless = EarlyStopped("10 % of validation top-1", "60 %", "lower the floor")
    runs = failing(lambda settings: settings["prune.ratio"] > 0.5, hopeless)
    trials = fake_search(tmp_path, runs, trials=14).all()
    ended = [trial for trial in trials if trial.state == GIVEN_UP]
    assert {trial.number for trial in ended} == {t.number for t in trials if t.settings["prune.ratio"] > 0.5}
    assert ended
    assert ended[0].reason == str(hopeless)


def null_energy(settings: dict[str, Any]) -> dict[str, Any]:
    causes = {"energy_joule_per_image": "no RAPL counter"}
    return accuracy_and_time(settings) | {"energy_joule_per_image": None, "unavailable": causes}


def test_a_figure_that_no_trial_has_ends_the_search_at_once(tmp_path: Path) -> None:
    runs = FakeRuns(null_energy)
    with pytest.raises(UserError, match="no energy_joule_per_image of a trial: no RAPL counter"):
        fake_search(tmp_path, runs, trials=8, constraints=["energy_joule_per_image <= 1"])
    assert len(runs.jobs) == 1
    with pytest.raises(UserError, match=r"no macs of a trial: metrics\.json has no such figure"):
        fake_search(tmp_path / "other", FakeRuns(), objectives=["macs"])


def test_a_figure_that_one_trial_lacks_fails_that_trial(tmp_path: Path) -> None:
    runs = FakeRuns()
    runs.figures = lambda settings: (
        null_energy(settings) if len(runs.jobs) == 3 else accuracy_and_time(settings) | {"energy_joule_per_image": 1.0}
    )
    trials = fake_search(tmp_path, runs, trials=5, objectives=["energy_joule_per_image"]).all()
    assert [trial.state for trial in trials] == [COMPLETE, COMPLETE, FAILED, COMPLETE, COMPLETE]
    assert "no RAPL counter" in trials[2].reason


def test_settings_that_cannot_be_together_are_not_launched(tmp_path: Path) -> None:
    def compose(overrides: list[str]) -> Config:
        if "distill.alpha=0.5" in overrides:
            raise UserError("distill.alpha=0.5 with the rest", "another", "change it")
        return Config()

    runs = FakeRuns()
    trials = fake_search(tmp_path, runs, compose=compose, trials=8).all()
    failed = [trial for trial in trials if trial.state == FAILED]
    assert {trial.settings["distill.alpha"] for trial in failed} == {"0.5"}
    assert len(runs.jobs) == 8 - len(failed)
