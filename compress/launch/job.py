"""One run as Hydra starts it: in the command's own process, or in a process that a launcher made for a sweep's job."""

import logging
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import rich
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.logging import RichHandler

from compress.config.compose import to_config
from compress.launch.exit_status import exit_status
from compress.launch.slurm import requeue_on_timeout
from compress.utils.cores import share
from compress.utils.errors import EarlyStopped, Interrupted
from compress.utils.files import FAILED, FINISHED, GIVEN_UP, STATUS, STOPPED, write_json
from compress.utils.signals import end_with_parent, handle_signals, stop_on_file

STOP = "stop"  # a file in a sweep's folder: where it exists, the jobs save their work and end

log = logging.getLogger("compress")


def run(composed: DictConfig) -> dict[str, Any]:
    """Runs what Hydra has composed, writes status.json into the run's folder, and returns how the run ended.

    The result has a `state`, and either the `error` of a run that did not finish or what `run_experiment` returns. A
    sweep's job raises nothing, because each launcher would treat an exception differently. The exception is
    Interrupted where the jobs take turns in the command's process: it ends them all.
    """
    hydra = HydraConfig.get()
    with end_with_parent() if runs_in_own_process(hydra) else nullcontext():
        return _run(composed, hydra)


def _run(composed: DictConfig, hydra: HydraConf) -> dict[str, Any]:
    folder = Path(hydra.runtime.output_dir)
    start = {"id": uuid.uuid4().hex}  # distinguishes this start from earlier ones in the same folder
    write_json(folder / STATUS, start | {"state": "running"})
    try:
        with _own_process(hydra) if runs_in_own_process(hydra) else nullcontext():
            result = _run_config(composed, folder, hydra)
    except Interrupted as stop:
        end = {"state": STOPPED, "error": str(stop), "exit": 128 + stop.signal}
        write_json(folder / STATUS, start | end)
        if not runs_in_own_process(hydra):
            raise
        return end
    except Exception as error:
        status, line = exit_status(error)
        end = {"state": GIVEN_UP if isinstance(error, EarlyStopped) else FAILED, "error": line, "exit": status}
        write_json(folder / STATUS, start | end)
        if hydra.mode != RunMode.MULTIRUN:
            raise
        log.error("%s", line, exc_info=status == 1)
        return end
    write_json(folder / STATUS, start | {"state": FINISHED})
    return {"state": FINISHED} | result


def runs_in_own_process(hydra: HydraConf) -> bool:
    """Whether the jobs of a sweep have processes of their own; `hydra` is the config's node of that name."""
    return hydra.mode == RunMode.MULTIRUN and not hydra.launcher["_target_"].endswith(".BasicLauncher")


def _run_config(composed: DictConfig, folder: Path, hydra: HydraConf) -> dict[str, Any]:
    config = to_config(composed)
    if runs_in_own_process(hydra):
        launcher = cast(dict[str, Any], OmegaConf.to_container(hydra.launcher))
        config.threads = config.threads or share(launcher)
    from compress.pipeline.experiment import run_experiment  # after the check: torch takes seconds to import

    return run_experiment(config, folder, wait=hydra.mode == RunMode.MULTIRUN)


@contextmanager
def _own_process(hydra: HydraConf) -> Iterator[None]:
    """Adapts a process that a launcher made to its job: what it prints, and how it is stopped."""
    rich.reconfigure(force_terminal=False)  # the bars of several jobs would overwrite each other
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            handler.setFormatter(logging.Formatter(f"#{hydra.job.num} %(message)s"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background processes
    by_submitit = "submitit" in hydra.launcher["_target_"]
    with (
        handle_signals(),
        stop_on_file(Path(hydra.sweep.dir) / STOP),
        requeue_on_timeout() if by_submitit else nullcontext(),
    ):
        yield
