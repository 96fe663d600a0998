"""The search on trials that need no network: its budgets, what fails, what is stopped or killed, and what it leaves."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from compress.config.schema import Config, SearchConfig
from compress.config.stage_settings import PruneConfig
from compress.launch.search import trials as trials_module
from compress.launch.search.loop import Result, TrialJob
from compress.launch.search.pareto import is_feasible
from compress.launch.search.trials import COMPLETE, Trial, Trials
from compress.utils.errors import EarlyStopped, Interrupted, UserError
from compress.utils.file_lock import this_process
from compress.utils.files import FAILED, GIVEN_UP, STOPPED, read_json
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


class InterruptedRuns(FakeRuns):
    """A launcher that is stopped at its third trial; in processes of their own, jobs say so, and none is raised."""

    def __init__(self, stop: Exception | BaseException | None):
        super().__init__()
        self.stop = stop

    def launch(self, jobs: list[TrialJob]) -> list[Result]:
        if len(self.jobs) < 2:
            return super().launch(jobs)
        if self.stop:
            raise self.stop
        return [*super().launch(jobs[:-1]), {"state": STOPPED, "error": "received SIGINT", "exit": 130}]


IN_TRAINING = Interrupted(signal.SIGINT, " after step 3 of 9 of distill; its state is saved")


@pytest.mark.parametrize("stop", [IN_TRAINING, None, KeyboardInterrupt()], ids=["here", "in a job", "unforeseen"])
def test_a_search_that_was_stopped_goes_on_with_the_trial_it_left(
    tmp_path: Path, stop: BaseException | None, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises((Interrupted, KeyboardInterrupt)) as ended:
        fake_search(tmp_path, InterruptedRuns(stop), trials=8)
    assert stop is not None or ended.value.signal == signal.SIGINT
    assert "2 trials: 2 complete" in capsys.readouterr().out
    found = read_json(tmp_path / "pareto.json")
    assert found["trials"] == {"complete": 2, "given_up": 0, "failed": 0, "running": 0}
    assert (tmp_path / "best.yaml").is_file()
    undisturbed = fake_search(tmp_path / "other", FakeRuns(), trials=8).all()
    again = FakeRuns()
    trials = fake_search(tmp_path, again, trials=8).all()
    assert again.jobs[0].trial.settings == undisturbed[2].settings
    assert again.jobs[0].trial.folder == "2"  # where its training was saved
    assert len(again.jobs) == 6
    assert len({trial.folder for trial in trials}) == len(trials) == 8
    assert {trial.state for trial in trials} == {COMPLETE}


@pytest.mark.parametrize(("stop", "left"), [(IN_TRAINING, ["2", "3"]), (None, ["3"])], ids=["here", "in a job"])
def test_what_a_stopped_batch_did_not_finish_is_tried_again(
    tmp_path: Path, stop: BaseException | None, left: list[str]
) -> None:
    with pytest.raises(Interrupted):
        fake_search(tmp_path, InterruptedRuns(stop), trials=6, jobs=2)
    again = FakeRuns()
    trials = fake_search(tmp_path, again, trials=6, jobs=2).all()
    assert [job.trial.folder for job in again.jobs][: len(left)] == left
    assert len(again.jobs) == 2 + len(left)
    assert len({trial.folder for trial in trials}) == len(trials) == 6


def test_a_launcher_that_breaks_loses_no_trial(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no more processes"):
        fake_search(tmp_path, InterruptedRuns(OSError("no more processes")), trials=6)
    assert len(fake_search(tmp_path, FakeRuns(), trials=6).all()) == 6


def dead_process() -> dict[str, Any]:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return this_process() | {"pid": ended.pid}


def killed_trial(folder: Path, monkeypatch: pytest.MonkeyPatch, owner: dict[str, Any]) -> Trial:
    """One that was asked for by a process that is no more."""
    with monkeypatch.context() as patch:
        patch.setattr(trials_module, "this_process", lambda: owner)
        trials = fake_trials(folder, SearchConfig())
        trials.reclaim_stale()
        return trials.ask(8)


def test_a_killed_processs_trial_is_tried_again_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_search(tmp_path, FakeRuns(), trials=2)
    killed = killed_trial(tmp_path, monkeypatch, dead_process())
    again = FakeRuns()
    trials = fake_search(tmp_path, again, trials=8).all()
    assert (again.jobs[0].trial.settings, again.jobs[0].trial.folder) == (killed.settings, killed.folder)
    assert len(trials) == 8
    assert {trial.state for trial in trials} == {COMPLETE}


def test_a_trial_that_costs_three_processes_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = dead_process()
    killed = [killed_trial(tmp_path, monkeypatch, owner) for _ in range(3)]
    assert len({str(trial.settings) for trial in killed}) == 1
    again = FakeRuns()
    trials = fake_search(tmp_path, again, trials=4).all()
    assert [trial.state for trial in trials] == [FAILED, COMPLETE, COMPLETE, COMPLETE]
    assert trials[0].reason == "its process ended without a word"
    assert killed[0].settings not in [job.trial.settings for job in again.jobs]


def test_a_trial_of_another_machine_is_taken_over_when_it_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = this_process() | {"host": "elsewhere"}
    killed = killed_trial(tmp_path, monkeypatch, elsewhere)
    first = FakeRuns()
    fake_search(tmp_path, first, trials=4)
    assert killed.settings not in [job.trial.settings for job in first.jobs]  # it may still run
    assert len(first.jobs) == 3
    _fall_silent(fake_trials(tmp_path, SearchConfig()))
    second = FakeRuns()
    fake_search(tmp_path, second, trials=4)
    assert [job.trial.settings for job in second.jobs] == [killed.settings]


def _fall_silent(trials: Trials) -> None:
    """As if the last sign of life of all that are running were an hour old."""
    with trials._storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')"))


def test_the_word_of_a_process_that_was_given_up_for_dead_comes_too_late(tmp_path: Path) -> None:
    slow = fake_trials(tmp_path, SearchConfig())
    trial = slow.ask(1)
    _fall_silent(slow)
    other = FakeRuns()
    fake_search(tmp_path, other, trials=1)
    slow.complete(trial, accuracy_and_time(trial.settings) | {"latency_ms_p50": 0.0}, {})
    (kept,) = slow.all()
    assert kept.figures == accuracy_and_time(trial.settings)
    assert other.jobs[0].trial.folder == trial.folder


def test_a_sign_of_life_keeps_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "BEAT_S", 0.01)
    trials = fake_trials(tmp_path, SearchConfig())
    trial = trials.ask(8)
    beats = []
    monkeypatch.setattr(trials._storage, "record_heartbeat", lambda number: beats.append(number))
    with trials.heartbeat([trial]):
        while len(beats) < 2:
            pass
    count = len(beats)
    assert set(beats) == {trials._trial_id(trial.number)}
    trials.fail(trial, "it is not run")
    assert len(beats) == count


def test_another_search_in_the_same_study_is_refused(tmp_path: Path) -> None:
    trials = fake_trials(tmp_path, SearchConfig())
    trials.require_same({"prune.epochs": "1", "seed": "0"})
    fake_trials(tmp_path, SearchConfig()).require_same({"prune.epochs": "1", "seed": "0"})
    for changed in ({"prune.epochs": "2", "seed": "0"}, {"prune.epochs": "1"}, {"seed": "0", "distill.lr": "x"}):
        with pytest.raises(UserError, match=r"in the study fake, which was started with .*hydra\.sweeper\.study=NAME"):
            fake_trials(tmp_path, SearchConfig()).require_same(changed)
