"""One run as Hydra starts it: in the command's own process, or in one that a launcher has made for a job of a sweep."""

import logging
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import rich
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.logging import RichHandler

from compress.config.compose import to_config
from compress.launch.exit_status import exit_status
from compress.launch.slurm import queued_again
from compress.utils.cores import share
from compress.utils.errors import EarlyStopped, Interrupted
from compress.utils.files import FAILED, FINISHED, GIVEN_UP, STATUS, STOPPED, write_json
from compress.utils.signals import handle_signals, stop_on_file

STOP = "stop"  # a file in a sweep's folder: its jobs save what they do, and end

log = logging.getLogger("compress")


def run(composed: DictConfig) -> dict[str, Any]:
    """Runs what Hydra has composed, leaves in the run's folder how that ended, and returns it.

    That is its `state`, with the `error` of one that did not finish, or with what `run_experiment` returns. A sweep's
    job raises nothing, for each launcher would do something else with it, but for Interrupted where the jobs take
    turns in the process of the command: it ends them all.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    note = {"id": uuid.uuid4().hex}  # tells this start from those before it in the same folder
    write_json(folder / STATUS, note | {"state": "running"})
    try:
        with _own_process(hydra) if runs_beside_others(hydra) else nullcontext():
            found = _study(composed, folder, hydra)
    except Interrupted as stop:
        end = {"state": STOPPED, "error": str(stop), "exit": 128 + stop.signal}
        write_json(folder / STATUS, note | end)
        if not runs_beside_others(hydra):
            raise
        return end
    except Exception as error:
        status, line = exit_status(error)
        end = {"state": GIVEN_UP if isinstance(error, EarlyStopped) else FAILED, "error": line, "exit": status}
        write_json(folder / STATUS, note | end)
        if hydra.mode != RunMode.MULTIRUN:
            raise
        log.error("%s", line, exc_info=status == 1)
        return end
    write_json(folder / STATUS, note | {"state": FINISHED})
    return {"state": FINISHED} | found


def runs_beside_others(hydra: HydraConf) -> bool:
    """Whether a config is of a sweep whose jobs have processes of their own; `hydra` is its node of that name."""
    return hydra.mode == RunMode.MULTIRUN and not hydra.launcher["_target_"].endswith(".BasicLauncher")


def _study(composed: DictConfig, folder: Path, hydra: HydraConf) -> dict[str, Any]:
    config = to_config(composed)
    if runs_beside_others(hydra):
        config.threads = config.threads or share(OmegaConf.to_container(hydra.launcher))
    from compress.pipeline.experiment import run_experiment  # after the check: torch takes seconds to import

    return run_experiment(config, folder, wait=hydra.mode == RunMode.MULTIRUN)


@contextmanager
def _own_process(hydra: HydraConf) -> Iterator[None]:
    """Fits a process that a launcher has made to a job: what it prints, and how it is stopped."""
    rich.reconfigure(force_terminal=False)  # the bars of several jobs would overwrite each other
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            handler.setFormatter(logging.Formatter(f"#{hydra.job.num} %(message)s"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background has it ignored
    by_submitit = "submitit" in hydra.launcher["_target_"]
    with (
        handle_signals(),
        stop_on_file(Path(hydra.sweep.dir) / STOP),
        queued_again() if by_submitit else nullcontext(),
    ):
        yield
