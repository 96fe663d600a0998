"""The search on trials that need no network: its budgets, and what it leaves."""

from pathlib import Path

import pytest

from compress.config.schema import Config, SearchConfig
from compress.config.stage_settings import PruneConfig
from compress.launch.search.pareto import is_feasible
from compress.launch.search.trials import COMPLETE
from compress.utils.errors import UserError
from compress.utils.files import read_json
from tests.launch.search.fake import FakeRuns, accuracy_and_time, fake_search, fake_trials


def test_the_budget_is_kept_and_each_trial_has_a_folder(tmp_path: Path) -> None:
    runs = FakeRuns()
    study = fake_search(tmp_path, runs, trials=8, jobs=3)
    trials = study.all()
    assert len(study._study.trials) == 8  # none was asked for and withdrawn
    assert [len(batch) for batch in runs.batches] == [3, 3, 2]
    assert [trial.folder for trial in trials] == [str(number) for number in range(8)]
    assert {trial.state for trial in trials} == {COMPLETE}
    for job in runs.jobs:
        assert job.overrides[0] == f"prune.ratio={job.trial.settings['prune.ratio']!r}"
    fake_search(tmp_path, runs, trials=8)
    assert len(runs.jobs) == 8  # what is there already counts
    fake_search(tmp_path, runs, trials=10)
    assert len(runs.jobs) == 10


def test_what_is_left_names_the_best_feasible_trial(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    constraint = "deployed_val_delta_points >= -8"
    trials = fake_search(tmp_path, FakeRuns(), trials=12, constraints=[constraint]).all()
    goals = fake_trials(tmp_path, SearchConfig(constraints=[constraint])).goals
    found = read_json(tmp_path / "pareto.json")
    feasible = {trial.number for trial in trials if trial.figures["deployed_val_delta_points"] >= -8}
    assert 0 < len(feasible) < 12
    assert {row["trial"] for row in found["pareto"]} <= feasible
    assert {row["trial"] for row in found["complete"] if row["feasible"]} == feasible
    assert feasible == {trial.number for trial in trials if is_feasible(trial, goals)}
    tops = {trial.number: trial.figures["deployed_val_top1_percent"] for trial in trials if trial.number in feasible}
    assert found["best"]["trial"] == max(tops, key=tops.get)
    assert found["trials"] == {"complete": 12, "given_up": 0, "failed": 0, "running": 0}
    (caution,) = found["cautions"]
    assert "test images are not" in caution
    head = (tmp_path / "best.yaml").read_text().splitlines()
    assert head[0].startswith("# the best of 12 trials of a search: deployed_val_top1_percent ")
    assert f"# keeps: {constraint}" in head
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if str(tmp_path) not in line)
    assert f"the recipe of trial {found['best']['trial']}: {tmp_path}/best.yaml" in shown


def test_constraints_reach_the_sampler(tmp_path: Path) -> None:
    trials = fake_search(tmp_path, FakeRuns(), trials=2, constraints=["latency_ms_p50 <= 1.5"])
    for frozen in trials._study.trials:
        excess = frozen.user_attrs["figures"]["latency_ms_p50"] - 1.5
        assert frozen.constraints == {"latency_ms_p50 <= 1.5": pytest.approx(excess)}


def test_that_none_is_feasible_is_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fake_search(tmp_path, FakeRuns(), trials=4, constraints=["latency_ms_p50 <= 0.5"])
    found = read_json(tmp_path / "pareto.json")
    assert found["pareto"] == []
    assert not found["best"]["feasible"]
    assert found["best"]["figures"]["latency_ms_p50"] == min(
        row["figures"]["latency_ms_p50"] for row in found["complete"]
    )
    assert "NO TRIAL KEEPS THE CONSTRAINTS (latency_ms_p50 <= 0.5)" in " ".join(capsys.readouterr().out.split())
    assert "# DOES NOT KEEP: latency_ms_p50 <= 0.5" in (tmp_path / "best.yaml").read_text()


def test_objectives_on_the_test_images_are_cautioned(tmp_path: Path) -> None:
    fake_search(tmp_path, FakeRuns(), trials=1, objectives=["deployed_top1_percent"])
    for name in ("pareto.json", "best.yaml"):
        assert "chosen by deployed_top1_percent, which the test images gave" in (tmp_path / name).read_text()


def test_times_that_were_taken_beside_other_runs_are_cautioned(tmp_path: Path) -> None:
    beside = lambda settings: accuracy_and_time(settings) | {"environment": {"runs_beside": 3, "cpu": "A CPU"}}
    fake_search(tmp_path / "timed", FakeRuns(beside), trials=2)
    assert (
        "latency_ms_p50: taken of 2 trials while other runs went on"
        in read_json(tmp_path / "timed/pareto.json")["cautions"][1]
    )
    fake_search(tmp_path / "other", FakeRuns(beside), trials=2, objectives=["top1_delta_points"])
    assert len(read_json(tmp_path / "other/pareto.json")["cautions"]) == 1


def test_no_trial_is_started_after_the_time_budget(tmp_path: Path) -> None:
    runs = FakeRuns()
    clock = lambda: 100.0 + 60 * len(runs.jobs)  # each trial takes a minute
    trials = fake_search(tmp_path, runs, clock, trials=100, minutes=3.5).all()
    assert len(trials) == 4  # the fourth begins in time, and is not cut off
    assert (tmp_path / "best.yaml").is_file()
    fake_search(tmp_path, runs, clock, trials=100, minutes=2)  # of this start
    assert len(runs.jobs) == 6


def test_settings_that_were_run_are_not_run_again(tmp_path: Path) -> None:
    runs = FakeRuns(lambda settings: accuracy_and_time(settings | {"prune.ratio": 0.5}))
    space = [dimension for dimension in fake_trials(tmp_path, SearchConfig()).space if dimension.key != "prune.ratio"]
    trials = fake_search(tmp_path / "search", runs, space=space, trials=9).all()
    assert len(runs.jobs) == 3  # as many as there are choices
    copies = [trial for trial in trials if trial.copy_of is not None]
    assert len(copies) == 6
    for copy in copies:
        assert copy.settings == trials[copy.copy_of].settings
        assert copy.figures == trials[copy.copy_of].figures
    assert len(read_json(tmp_path / "search" / "pareto.json")["pareto"]) == 1


def test_floors_are_set_once_there_is_something_to_judge_by(tmp_path: Path) -> None:
    runs = FakeRuns()
    runs.curve = lambda settings: {"prune": [50.0, 90.0]}
    compose = lambda overrides: Config(prune=PruneConfig(epochs=2))
    bound = {"constraints": ["deployed_val_delta_points >= -100"]}
    fake_search(tmp_path / "on", runs, compose=compose, trials=7, **bound)
    given = [[text for text in job.overrides if text.startswith("stop_below")] for job in runs.jobs]
    assert given == [[]] * 5 + [["stop_below.prune=[49.0,89.0]"]] * 2
    fake_search(tmp_path / "off", runs, compose=compose, trials=7, give_up=False, **bound)
    assert not any("stop_below" in text for job in runs.jobs[7:] for text in job.overrides)


def test_another_search_in_the_same_study_is_refused(tmp_path: Path) -> None:
    trials = fake_trials(tmp_path, SearchConfig())
    trials.require_same({"prune.epochs": "1", "seed": "0"})
    fake_trials(tmp_path, SearchConfig()).require_same({"prune.epochs": "1", "seed": "0"})
    for changed in ({"prune.epochs": "2", "seed": "0"}, {"prune.epochs": "1"}, {"seed": "0", "distill.lr": "x"}):
        with pytest.raises(UserError, match=r"in the study fake, which was started with .*hydra\.sweeper\.study=NAME"):
            fake_trials(tmp_path, SearchConfig()).require_same(changed)
