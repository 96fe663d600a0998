"""The command line: picks the sub-command; of a run, Hydra composes the config, and its end becomes an exit status."""

import importlib
import os
import sys
import traceback

from compress.config.paths import CONF
from compress.launch.commands import SUBCOMMANDS
from compress.launch.help import help_page
from compress.utils.cores import shorten_spinning
from compress.utils.errors import Interrupted, UserError, print_error
from compress.utils.torchrun import rank, world_size


def main(arguments: list[str] | None = None) -> int:
    """Runs `arguments`, by default the process's: a sub-command, or else a run.

    Returns the exit status: 0, 2 for a user's own mistake, 1 for a fault of ours, and 128 and the signal's number
    where a signal ended it.
    """
    shorten_spinning()
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "run"
    if name in SUBCOMMANDS:
        module, _ = SUBCOMMANDS[name]
        return importlib.import_module(module).main(arguments[1:])  # by name: `--help` waits for none of them
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
    import hydra

    from compress.config.compose import register, with_own_folders
    from compress.config.overrides import as_hydra_reads
    from compress.launch.exit_status import exit_status
    from compress.launch.job import run
    from compress.launch.launchers import register_launchers, require_one_kind_of_processes
    from compress.launch.search.plugin import register_search
    from compress.launch.sweep import explain_launcher, outcome, place, write_page
    from compress.utils.signals import handle_signals

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and exit
    try:
        sys.argv[1:] = as_hydra_reads(arguments)  # Hydra takes them from there
        register(sys.argv[1:])
        require_one_kind_of_processes(sys.argv[1:], world_size())
        register_launchers()
        register_search()
        sys.argv[1:] = with_own_folders(sys.argv[1:])
        with handle_signals():
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)()
            finally:
                write_page()
        status, line = outcome()
    except Interrupted as stop:
        status, line = 128 + stop.signal, f"{stop}; to go on: the same command with {place()}"
    except Exception as error:
        status, line = exit_status(explain_launcher(error))
        if status == 1:
            traceback.print_exc()
    if line:
        print_error(line)
    if world_size() > 1 and status == 0:  # of one that fails torchrun ends the others
        from compress.training.distributed import shut_down_workers

        shut_down_workers()
    return status


def _follow() -> int:
    """The exit status of a process that another one leads."""
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
