"""The search itself: asks for trials, runs them and records how they ended, until the budget is spent. No Hydra."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from signal import Signals
from typing import Any

from compress.config.schema import Config, SearchConfig
from compress.launch.search.early_stopping import stop_thresholds
from compress.launch.search.trials import COMPLETE, Trial, Trials
from compress.stages import STAGES
from compress.utils.errors import Interrupted, UserError
from compress.utils.files import FAILED, FINISHED, GIVEN_UP, STOPPED

log = logging.getLogger("compress")


@dataclass(frozen=True)
class TrialJob:
    """A trial and the overrides that its run is started with."""

    trial: Trial
    overrides: list[str]


Result = dict[str, Any]  # what `compress.launch.job.run` returns
Launch = Callable[[list[TrialJob]], list[Result]]  # runs jobs and returns their results in the same order


@dataclass(frozen=True)
class SearchHooks:
    """The functions through which the search uses the program around it."""

    launch: Launch
    overrides: Callable[[Trial], list[str]]  # returns the overrides of a trial's config
    compose: Callable[[list[str]], Config]  # raises UserError for settings that are invalid
    write_results: Callable[[bool], None]  # writes the results so far, and with True prints them as well
    clock: Callable[[], float] = time.monotonic  # seconds


def search(trials: Trials, settings: SearchConfig, hooks: SearchHooks) -> None:
    """Runs trials until the study has `settings.trials` of them or `settings.minutes` are over; writes the results.

    Raises UserError where no trial finished, or none can be judged, and Interrupted where a signal ended a trial.
    Trials that were under way, whatever was raised, are the first to be run at the next start.
    """
    started = hooks.clock()
    try:
        while count := _affordable(trials, settings, hooks.clock() - started):
            if not _run_batch(trials, count, settings, hooks):
                break
            hooks.write_results(False)
    finally:
        hooks.write_results(True)
    _require_one(trials.all())


def _affordable(trials: Trials, settings: SearchConfig, spent_s: float) -> int:
    """Returns how many trials may be started now."""
    if settings.minutes is not None and spent_s >= 60 * settings.minutes:
        log.info("search: the %g minutes are over", settings.minutes)
        return 0
    trials.reclaim_stale()
    return max(0, min(settings.jobs, settings.trials - len(trials.all())))


def _run_batch(trials: Trials, count: int, settings: SearchConfig, hooks: SearchHooks) -> int:
    """Asks for `count` trials, runs them together and records how each ended; returns how many there were."""
    waiting: list[Trial] = []
    unfit: list[UserError] = []
    try:
        while len(waiting) < count and (trial := trials.ask(settings.trials)):
            waiting.append(trial)
        asked = len(waiting)
        results = _results(trials, waiting, settings, hooks)
        for job, result in results:
            if result["state"] == STOPPED:
                continue
            waiting.remove(job.trial)
            if error := _judge(trials, job.trial, result):
                unfit.append(error)
        if waiting:
            stop = next(result for _, result in results if result["state"] == STOPPED)
            raise Interrupted(Signals(stop["exit"] - 128), " while trials were run; their state is saved")
    except BaseException:
        for trial in waiting:
            trials.requeue(trial)
        raise
    if unfit and not any(trial.state == COMPLETE for trial in trials.all()):
        raise unfit[0]  # none of the others could be judged either
    return asked


def _results(
    trials: Trials, waiting: list[Trial], settings: SearchConfig, hooks: SearchHooks
) -> list[tuple[TrialJob, Result]]:
    """Returns the result of each trial: a copy of an equal trial's, an error, or what its run returned."""
    known = trials.all()
    jobs: list[TrialJob] = []
    results: list[tuple[TrialJob, Result]] = []
    for trial in waiting:
        job = TrialJob(trial, hooks.overrides(trial))
        twin = next((old for old in known if old.state == COMPLETE and old.settings == trial.settings), None)
        try:
            config = hooks.compose(job.overrides)
        except UserError as error:
            results.append((job, {"state": FAILED, "error": str(error)}))
            continue
        if twin:
            copied = {"metrics": twin.figures, "validation": twin.validation, "copy_of": twin.number}
            results.append((job, {"state": FINISHED} | copied))
        else:
            thresholds = stop_thresholds(known, trials.goals, _epochs(config)) if settings.give_up else {}
            given = [f"stop_below.{stage}=[{','.join(map(str, values))}]" for stage, values in thresholds.items()]
            jobs.append(TrialJob(trial, job.overrides + given))
    if jobs:
        with trials.heartbeat([job.trial for job in jobs]):
            results += zip(jobs, hooks.launch(jobs), strict=True)
    return results


def _judge(trials: Trials, trial: Trial, result: Result) -> UserError | None:
    """Records how a trial ended; returns why its figures cannot be judged, if they cannot."""
    if result["state"] == GIVEN_UP:
        trials.give_up(trial, result["error"])
    elif result["state"] == FAILED:
        trials.fail(trial, result["error"])
    else:
        try:
            trials.complete(trial, result["metrics"], result["validation"], result.get("copy_of"))
        except UserError as error:
            trials.fail(trial, str(error))
            return error
    log.info("search: trial %d %s", trial.number, result["state"])
    return None


def _epochs(config: Config) -> dict[str, int]:
    """Returns the number of epochs of each stage that a config trains."""
    epochs = {name: STAGES[name].epochs(getattr(config, name)) for name in config.stages}
    return {name: count for name, count in epochs.items() if count}


def _require_one(trials: list[Trial]) -> None:
    if any(trial.state == COMPLETE for trial in trials):
        return
    last = next((trial for trial in reversed(trials) if trial.reason), None)
    reason = f", the last one because: {last.reason}" if last else ""
    raise UserError(
        f"a search in which none of {len(trials)} trials came to an end{reason}",
        "one trial or more that does",
        "mend that, or give it more hydra.sweeper.trials or hydra.sweeper.minutes",
    )
