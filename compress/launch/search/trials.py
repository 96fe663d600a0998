"""The trials of a search: proposed by Optuna, kept in a database, and requeued where their process has died."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from compress.launch.search.objectives import Goals, take_figure
from compress.launch.search.space import Dimension, Value
from compress.launch.search.storage import BEAT_S, silence_heartbeat_warnings
from compress.utils.errors import UserError
from compress.utils.file_lock import is_dead_here, this_process
from compress.utils.files import FAILED, GIVEN_UP
from compress.utils.numbered_sampler import NumberedSampler

log = logging.getLogger("compress")

RUNNING, COMPLETE = "running", "complete"

_STATES = {
    TrialState.RUNNING: RUNNING,
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: GIVEN_UP,
    TrialState.FAIL: FAILED,
}
_DEATHS = 3  # processes that may die with a trial before it counts as failed
_DIED = "its process ended without a word"


@dataclass(frozen=True)
class Trial:
    """A trial as it is in the database."""

    number: int
    state: str
    settings: dict[str, Value]  # what was proposed, by key
    folder: str  # inside the sweep's folder
    host: str  # the machine that has the folder
    figures: dict[str, Any] = field(default_factory=dict)  # the numbers of metrics.json, in the same places
    validation: dict[str, list[float]] = field(default_factory=dict)  # by stage: the metric in percent, each epoch
    reason: str = ""  # why it failed or was given up
    copy_of: int | None = None  # the trial that had the same settings, and was not run again


class Trials:
    """A study: `ask` returns the next trial, and each trial has to be ended by one of the other methods."""

    def __init__(self, storage: RDBStorage, name: str, space: list[Dimension], goals: Goals, sampler: NumberedSampler):
        self.goals, self.space = goals, space
        self._storage = storage
        storage.heartbeat_stale_trial_callback = self._retry
        with silence_heartbeat_warnings():
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[StudyDirection[objective.direction.upper()] for objective in goals.objectives],
                sampler=sampler,
                load_if_exists=True,
            )
        self._id = storage.get_study_id_from_name(name)
        self._open: dict[int, optuna.Trial] = {}  # those of this process that are under way

    @property
    def name(self) -> str:
        return self._study.study_name

    def require_same(self, search: dict[str, str]) -> None:
        """Raises UserError where the study was started with other settings than those of `search`."""
        before = self._study.user_attrs.get("search")
        if before is None:
            self._study.set_user_attr("search", search)
            return
        for name in {**before, **search}:
            old, new = before.get(name, "nothing"), search.get(name, "nothing")
            if old != new:
                raise UserError(
                    f"{name}={new} in the study {self.name}, which was started with {old}",
                    "the search that it was started for",
                    "start it with those settings, or name another one: hydra.sweeper.study=NAME",
                )

    def all(self) -> list[Trial]:
        """Returns every trial in the order of the numbers, without those that were requeued under another number."""
        return [_read(trial) for trial in self._counted() if "owner" in trial.user_attrs]

    def ask(self, budget: int) -> Trial | None:
        """Returns the next trial: one that was requeued, or else what the sampler proposes.

        Returns None where the study already has `budget` trials: other processes then asked for the last ones at the
        same moment.
        """
        with silence_heartbeat_warnings():
            trial = self._study.ask({dimension.key: dimension.distribution for dimension in self.space})
        self._storage.record_heartbeat(self._trial_id(trial.number))
        self._open[trial.number] = trial
        folder = trial.user_attrs.get("folder", str(trial.number))
        trial.set_user_attr("folder", folder)
        owner = this_process()
        asked = Trial(trial.number, RUNNING, dict(trial.params), folder, str(owner["host"]))
        if len([other for other in self._counted() if other.number < trial.number]) >= budget:
            self.fail(asked, "the other processes of the study had asked for the last trials")
            return None
        trial.set_user_attr("owner", owner)
        return asked

    def complete(
        self, trial: Trial, figures: dict[str, Any], validation: dict[str, list[float]], copy_of: int | None = None
    ) -> None:
        """Ends a trial with its figures. Raises UserError, and does not end it, where a figure is missing."""
        goals = self.goals
        values = [take_figure(figures, objective.figure) for objective in goals.objectives]
        excesses = {str(goal): goal.excess(take_figure(figures, goal.figure)) for goal in goals.constraints}
        with self._finishing(trial) as own:
            for text, excess in excesses.items():
                own.set_constraint(text, excess)
            own.set_user_attr("figures", _numbers(figures))
            own.set_user_attr("validation", validation)
            own.set_user_attr("copy_of", copy_of)
            self._study.tell(own, values)

    def fail(self, trial: Trial, reason: str) -> None:
        self._end(trial, TrialState.FAIL, reason)

    def give_up(self, trial: Trial, reason: str) -> None:
        self._end(trial, TrialState.PRUNED, reason)

    def requeue(self, trial: Trial) -> None:
        """Puts a trial that was interrupted, with its folder, in line for the next start."""
        with self._finishing(trial) as own:
            own.set_user_attr("reason", "it was left for the next start")
            self._study.tell(own, state=TrialState.FAIL)
            self._enqueue(trial.number, trial.settings, {"folder": trial.folder, **_deaths(own.user_attrs)})

    def reclaim_stale(self) -> None:
        """Puts the trials of dead processes in line again. A trial with which three processes died has failed."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("owner", {})
            ours = owner == this_process() and trial.number not in self._open  # an earlier process had our number
            if ours or is_dead_here(owner):
                try:
                    self._storage.set_trial_state_values(self._trial_id(trial.number), TrialState.FAIL)
                except UpdateFinishedTrialError:  # another process was first
                    continue
                self._retry(self._study, trial)
        with silence_heartbeat_warnings():
            fail_stale_trials(self._study)

    @contextmanager
    def heartbeat(self, trials: list[Trial]) -> Iterator[None]:
        """Sends heartbeats for these trials to the database for as long as the context lasts."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(trials, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _counted(self) -> list[FrozenTrial]:
        """Returns the trials that count for the budget.

        These are all but the waiting, the withdrawn and the requeued ones; one that was only just asked for counts.
        """
        found = self._study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("retry_of") for trial in found}
        counted = [trial for trial in found if "owner" in trial.user_attrs or trial.state == TrialState.RUNNING]
        return [trial for trial in counted if trial.number not in again]

    def _beat(self, trials: list[Trial], ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            try:
                for trial in trials:
                    self._storage.record_heartbeat(self._trial_id(trial.number))
            except Exception as error:  # the database may be back before the trial's end
                log.warning("the database of the search does not answer: %s", error)

    def _end(self, trial: Trial, state: TrialState, reason: str) -> None:
        with self._finishing(trial) as own:
            own.set_user_attr("reason", reason)
            self._study.tell(own, state=state)

    @contextmanager
    def _finishing(self, trial: Trial) -> Iterator[optuna.Trial]:
        """Yields a trial to end. Where another process has reclaimed it already, logs that and changes nothing."""
        try:
            yield self._open[trial.number]
        except UpdateFinishedTrialError:
            log.warning("trial %d: it was taken over while this process was silent", trial.number)
        del self._open[trial.number]

    def _retry(self, study: optuna.Study, trial: FrozenTrial) -> None:
        died = _deaths(trial.user_attrs)["deaths"] + 1
        log.warning("trial %d: %s", trial.number, _DIED)
        if died < _DEATHS:
            kept = {"folder": trial.user_attrs.get("folder", str(trial.number)), "deaths": died}
            self._enqueue(trial.number, trial.params, kept)

    def _enqueue(self, number: int, settings: dict[str, Value], kept: dict[str, Any]) -> None:
        self._study.enqueue_trial(settings, user_attrs=kept | {"retry_of": number})

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _deaths(attributes: dict[str, Any]) -> dict[str, int]:
    return {"deaths": attributes.get("deaths", 0)}


def _read(trial: FrozenTrial) -> Trial:
    attributes = trial.user_attrs
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        settings=dict(trial.params),
        folder=attributes["folder"],
        host=attributes["owner"]["host"],
        figures=attributes.get("figures", {}),
        validation=attributes.get("validation", {}),
        reason=attributes.get("reason", _DIED if trial.state == TrialState.FAIL else ""),
        copy_of=attributes.get("copy_of"),
    )


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers among `figures`, in the same nested dicts, without lists and texts."""
    kept: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            if inner := _numbers(value):
                kept[name] = inner
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            kept[name] = value
    return kept
