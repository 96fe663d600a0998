"""The command's own part in what Hydra runs: where that goes and, for a sweep, how its jobs are stopped and counted."""

import json
import os
import shlex
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from compress.config.schema import SearchConfig
from compress.launch.exit_status import exit_status
from compress.launch.job import STOP, runs_in_own_process
from compress.launch.launchers import to_launcher_error
from compress.utils.errors import Interrupted, UserError
from compress.utils.files import FINISHED, STATUS
from compress.utils.signals import raise_interrupted


@dataclass
class SweepState:
    """What a command knows of the run or of the jobs that Hydra starts for it."""

    folder_key: str = ""  # hydra.run.dir or hydra.sweep.dir
    folder: Path = Path()
    launcher: str = ""  # the class that starts a sweep's jobs; empty for a single run
    is_search: bool = False  # a search's sweeper handles the jobs that do not finish
    statuses_before: dict[Path, str] = field(default_factory=dict)  # of jobs that earlier commands ran there
    stopped_by: signal.Signals | None = None  # once its jobs, in processes of their own, were asked to end

    def resume_override(self) -> str:
        """Returns the override with which the same command resumes."""
        return shlex.quote(f"{self.folder_key}={self.folder}")

    def write_page(self) -> None:
        """Writes the page that compares a sweep's jobs, once one has begun."""
        if self.launcher and self.statuses():
            from compress.report.write import write_sweep  # it takes as long to import as the rest of the start

            write_sweep(self.folder)

    def final_status(self) -> tuple[int, str]:
        """Returns the exit status and the last line of a command that Hydra has run: 0 and none where all finished.

        A search counts as finished: it continues after jobs that fail, and raises where all do. Raises Interrupted
        where a signal ended the jobs.
        """
        if self.stopped_by:
            raise Interrupted(self.stopped_by, "; its jobs have saved what they did")
        changed = {path: text for path, text in self.statuses().items() if text != self.statuses_before.get(path)}
        jobs = {path.parent: json.loads(text) for path, text in changed.items()}
        missed = {folder: job for folder, job in jobs.items() if job["state"] != FINISHED}
        if not missed or not self.launcher or self.is_search:
            return 0, ""
        names = ", ".join(folder.relative_to(self.folder).as_posix() for folder in missed)
        mistake = UserError(
            f"{len(missed)} of {len(jobs)} jobs that did not finish ({names})",
            "all to finish",
            f"see {self.folder}/report.md for each one's error, then the same command with {self.resume_override()}",
        )
        return (2 if all(job.get("exit") == 2 for job in missed.values()) else 1), str(mistake)

    def explain_launcher_error(self, error: Exception) -> Exception:
        """Returns what `error` means where the launcher is missing or has given up; otherwise `error` itself."""
        mistake = to_launcher_error(error, self.launcher)
        if mistake or self.launcher in ("", "BasicLauncher") or exit_status(error)[0] == 2:
            return mistake or error
        return RuntimeError(
            f"{self.launcher} gave up: {error}; to go on: the same command with {self.resume_override()}"
        )

    def statuses(self) -> dict[Path, str]:
        """Returns the content of every status.json below the folder."""
        return {path: path.read_text(encoding="utf-8") for path in sorted(self.folder.glob(f"**/{STATUS}"))}


_STATE: ContextVar[SweepState] = ContextVar("sweep_state")


@contextmanager
def sweep_state() -> Iterator[SweepState]:
    """Yields the state of the command that runs inside. Hydra makes the callback that fills it, from a config alone."""
    state = SweepState()
    token = _STATE.set(state)
    try:
        yield state
    finally:
        _STATE.reset(token)


def current_state() -> SweepState:
    """Returns the state of the command that is running; a fresh one outside of `sweep_state`."""
    return _STATE.get(SweepState())


class SweepCallback(Callback):
    """Records where the command writes, which Hydra passes to callbacks alone, and prepares a sweep."""

    def __init__(self) -> None:
        self.state = current_state()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _make_resolvable(config)
        self.state.folder_key, self.state.folder = "hydra.run.dir", Path(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _make_resolvable(config)
        state = self.state
        state.folder_key, state.folder = "hydra.sweep.dir", Path(config.hydra.sweep.dir)
        state.launcher = config.hydra.launcher["_target_"].rpartition(".")[2]
        state.is_search = config.hydra.sweeper["_target_"] == SearchConfig._target_
        state.statuses_before = state.statuses()
        (state.folder / STOP).unlink(missing_ok=True)
        if runs_in_own_process(config.hydra):
            _start_signal_takers(state.launcher, config.hydra.launcher)
            _pass_signals_on_to_jobs(state)


def _make_resolvable(config: DictConfig) -> None:
    """Lets ${hydra:...} in a folder's name be resolved already: Hydra itself sets its config later."""
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # Hydra too puts a whole config there


def _start_signal_takers(launcher: str, settings: DictConfig) -> None:
    """Starts the parts of joblib and Ray at once that would undo `_pass_signals_on_to_jobs` if they started later."""
    if launcher == "JoblibLauncher":  # its trackers, which unblock SIGINT
        from multiprocessing import resource_tracker

        from joblib.externals.loky.backend import resource_tracker as joblib_tracker

        resource_tracker.ensure_running()
        joblib_tracker.ensure_running()
    elif launcher == "RayLauncher":  # it installs its own handler of SIGTERM
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # it would drop lines that two jobs have alike
        import ray

        ray.init(**cast(dict[str, Any], OmegaConf.to_container(settings.ray.init, resolve=True)))


def _pass_signals_on_to_jobs(state: SweepState) -> None:
    """Makes the first SIGTERM or SIGINT ask the jobs to end, for which the launcher waits; the next one ends it.

    SIGINT is blocked and taken by a thread. Ctrl-C goes to all processes of a terminal, and joblib gives up all its
    jobs where a process without a job dies; the processes that a launcher makes inherit what is blocked.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if state.stopped_by:
            raise_interrupted(number, frame)
        state.stopped_by = signal.Signals(number)
        state.folder.mkdir(parents=True, exist_ok=True)
        (state.folder / STOP).touch()
        print("compress: the jobs save what they do, and end; a second signal does not wait for them", file=sys.stderr)

    def take() -> None:
        while True:
            interrupt_main(signal.Signals(signal.sigwait({signal.SIGINT})))

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=take, daemon=True).start()
