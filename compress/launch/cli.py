"""The command line: picks the sub-command. Hydra composes the config of a run, whose end becomes the exit status."""

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

from compress.config.paths import CONF
from compress.launch.commands import SUBCOMMANDS
from compress.launch.help import help_page
from compress.utils.cores import shorten_spinning
from compress.utils.errors import Interrupted, UserError, print_error
from compress.utils.torchrun import rank, world_size

if TYPE_CHECKING:
    from compress.launch.sweep import SweepState


def main(arguments: list[str] | None = None) -> int:
    """Runs a sub-command, or else a recipe. `arguments` default to those of the process.

    Returns the exit status: 0 for success, 2 for a user's mistake, 1 for an internal error, and 128 plus the number of
    the signal that ended it.
    """
    shorten_spinning()
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "run"
    if name in SUBCOMMANDS:
        module, _ = SUBCOMMANDS[name]
        return importlib.import_module(module).main(arguments[1:])  # imported by name, so that `--help` waits for none
    if name == "preflight":
        return _run(["preflight=true", *arguments[1:]])
    return _run(arguments[1:] if name == "run" else arguments)


def _run(arguments: list[str]) -> int:
    """Runs a recipe, or prints the help page; `arguments` are Hydra's overrides and flags."""
    if {"--help", "-h"} & set(arguments):
        if rank() == 0:
            print(help_page())
        return 0
    if rank() > 0:
        return _follow()
    from compress.launch.exit_status import exit_status
    from compress.launch.sweep import sweep_state

    with sweep_state() as state:
        try:
            _run_hydra(arguments, state)
            status, line = state.final_status()
        except Interrupted as stop:
            status, line = 128 + stop.signal, f"{stop}; to go on: the same command with {state.resume_override()}"
        except Exception as error:
            status, line = exit_status(state.explain_launcher_error(error))
            if status == 1:
                traceback.print_exc()
    if line:
        print_error(line)
    if world_size() > 1 and status == 0:  # torchrun itself ends the others of one that fails
        from compress.training.distributed import shut_down_workers

        shut_down_workers()
    return status


def _run_hydra(arguments: list[str], state: "SweepState") -> None:
    """Lets Hydra compose and run what `arguments` ask for, and writes the page of a sweep, however that ends."""
    import hydra

    from compress.config.compose import register, with_output_folders
    from compress.config.overrides import quote_overrides
    from compress.launch.job import run
    from compress.launch.launchers import register_launchers, require_one_kind_of_processes
    from compress.launch.search.plugin import register_search
    from compress.utils.signals import handle_signals

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and exit
    overrides = quote_overrides(arguments)
    register(overrides)
    require_one_kind_of_processes(overrides, world_size())
    register_launchers()
    register_search()
    sys.argv[1:] = with_output_folders(overrides)  # Hydra reads them from there
    with handle_signals():
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)()
        finally:
            state.write_page()


def _follow() -> int:
    """Computes what the process of rank 0 sends; returns the exit status."""
    from compress.pipeline.compute import worker_loop

    try:
        worker_loop()
    except Interrupted as stop:
        return 128 + stop.signal
    except UserError as error:
        print_error(str(error))
        return 2
    except Exception as error:
        return _fault(error)
    return 0


def _fault(error: Exception) -> int:
    traceback.print_exc()
    print_error(f"stopped by a fault of its own: {type(error).__name__}: {error}")
    return 1
