"""Searches that are stopped or killed, and trials whose process fell silent: none is lost, and none runs twice."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from compress.config.schema import SearchConfig
from compress.launch.search import trials as trials_module
from compress.launch.search.loop import Result, TrialJob
from compress.launch.search.trials import COMPLETE, Trial, Trials
from compress.utils.errors import Interrupted
from compress.utils.file_lock import this_process
from compress.utils.files import FAILED, STOPPED, read_json
from tests.launch.search.fake import FakeRuns, accuracy_and_time, fake_search, fake_trials


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
