"""The command line: Hydra composes the config and starts what it asks for; here its end becomes an exit status."""

import os
import sys
import traceback

from compress.config.paths import CONF
from compress.launch.help import help_page
from compress.utils.cores import shorten_spinning
from compress.utils.errors import Interrupted, UserError, tell
from compress.utils.torchrun import rank, world_size


def main() -> int:
    """Runs the command line; returns the exit status: 0, 2 for a user's own mistake, 1 for a fault of ours.

    128 and the signal's number where a signal ended it.
    """
    shorten_spinning()
    if {"--help", "-h"} & set(sys.argv[1:]):
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
        sys.argv[1:] = as_hydra_reads(sys.argv[1:])
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
        tell(line)
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
        tell(str(error))
        return 2
    except Exception as error:
        return _fault(error)
    return 0


def _fault(error: Exception) -> int:
    traceback.print_exc()
    tell(f"stopped by a fault of its own: {type(error).__name__}: {error}")
    return 1
