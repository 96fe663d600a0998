"""The command's own part in what Hydra runs: where that goes and, of a sweep, how its jobs are stopped and counted."""

import json
import os
import shlex
import signal
import sys
import threading
from _thread import interrupt_main
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from compress.config.schema import SearchConfig
from compress.launch.exit_status import exit_status
from compress.launch.job import STOP, runs_beside_others
from compress.launch.launchers import launcher_mistake
from compress.utils.errors import Interrupted, UserError
from compress.utils.files import FINISHED, STATUS
from compress.utils.signals import raise_interrupted


@dataclass
class _Command:
    """What is known of the command that this process runs."""

    key: str = ""  # hydra.run.dir or hydra.sweep.dir
    folder: Path = Path()
    launcher: str = ""  # the class of a sweep's
    searches: bool = False  # whether it has a sweeper that sees to jobs that do not finish
    before: dict[Path, str] = field(default_factory=dict)  # the status of each job, as earlier commands left it
    stopped_by: signal.Signals | None = None  # once its jobs were asked to end


_command = _Command()


class SweepCallback(Callback):
    """Learns from Hydra, which tells it to callbacks alone, where the command writes."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().cfg = config  # it is set later, and ${hydra:...} in a folder's name could not be read
        _command.key, _command.folder = "hydra.run.dir", Path(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().cfg = config
        _command.key, _command.folder = "hydra.sweep.dir", Path(config.hydra.sweep.dir)
        _command.launcher = config.hydra.launcher["_target_"].rpartition(".")[2]
        _command.searches = config.hydra.sweeper["_target_"] == SearchConfig._target_
        _command.before = _statuses()
        (_command.folder / STOP).unlink(missing_ok=True)
        if runs_beside_others(config.hydra):
            _start_what_takes_signals(config.hydra.launcher)
            _pass_signals_on_to_jobs()


def place() -> str:
    """The override with which the same command goes on."""
    return shlex.quote(f"{_command.key}={_command.folder}")


def stopped_by() -> signal.Signals | None:
    """What has asked the jobs of a sweep to end, where they have processes of their own."""
    return _command.stopped_by


def write_page() -> None:
    """Writes the page that compares a sweep's jobs, once one has begun."""
    if _command.launcher and _statuses():
        from compress.report.write import write_sweep  # it takes as long to import as the rest of the start

        write_sweep(_command.folder)


def outcome() -> tuple[int, str]:
    """Exit status and last line of a command whose jobs all came to an end: 0 and none where they finished.

    Of a search too: it goes on behind those that did not, and raises where none did. Raises Interrupted where a signal
    has ended them.
    """
    if _command.stopped_by:
        raise Interrupted(_command.stopped_by, "; its jobs have saved what they did")
    jobs = {path.parent: json.loads(text) for path, text in _statuses().items() if text != _command.before.get(path)}
    missed = {folder: job for folder, job in jobs.items() if job["state"] != FINISHED}
    if not missed or not _command.launcher or _command.searches:
        return 0, ""
    names = ", ".join(folder.relative_to(_command.folder).as_posix() for folder in missed)
    mistake = UserError(
        f"{len(missed)} of {len(jobs)} jobs that did not finish ({names})",
        "all to finish",
        f"see {_command.folder}/report.md for each one's error, then the same command with {place()}",
    )
    return (2 if all(job.get("exit") == 2 for job in missed.values()) else 1), str(mistake)


def explain_launcher(error: Exception) -> Exception:
    """What `error` says of a launcher that is missing or has given up; itself, where it is of something else."""
    mistake = launcher_mistake(error, _command.launcher)
    if mistake or _command.launcher in ("", "BasicLauncher") or exit_status(error)[0] == 2:
        return mistake or error
    return RuntimeError(f"{_command.launcher} gave up: {error}; to go on: the same command with {place()}")


def _statuses() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted(_command.folder.glob(f"**/{STATUS}"))}


def _start_what_takes_signals(launcher: DictConfig) -> None:
    """Lets joblib and Ray start at once what would undo `_pass_signals_on_to_jobs` if it were started later."""
    if _command.launcher == "JoblibLauncher":  # its trackers, which unblock SIGINT
        from multiprocessing import resource_tracker

        from joblib.externals.loky.backend import resource_tracker as of_joblib

        resource_tracker.ensure_running()
        of_joblib.ensure_running()
    elif _command.launcher == "RayLauncher":  # which puts its own handler behind SIGTERM
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # it would leave out lines that two jobs have alike
        import ray

        ray.init(**OmegaConf.to_container(launcher.ray.init, resolve=True))


def _pass_signals_on_to_jobs() -> None:
    """From here on the first SIGTERM or SIGINT asks the jobs to end, for which the launcher waits; the next ends it.

    SIGINT is blocked and taken by a thread. Ctrl-C goes to all processes of a terminal, and joblib gives up all its
    jobs where one that has none dies; those that a launcher makes inherit what is blocked.
    """

    def ask(number: int, frame: object) -> None:
        if _command.stopped_by:
            raise_interrupted(number, frame)
        _command.stopped_by = signal.Signals(number)
        _command.folder.mkdir(parents=True, exist_ok=True)
        (_command.folder / STOP).touch()
        print("compress: the jobs save what they do, and end; a second signal does not wait for them", file=sys.stderr)

    def take() -> None:
        while True:
            interrupt_main(signal.sigwait({signal.SIGINT}))

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=take, daemon=True).start()
