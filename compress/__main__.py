"""The command line: Hydra composes the config and starts what it asks for, here its end is told."""

import os
import sys
import traceback

from compress.errors import Stopped
from compress.help import CONF, help_page


def main() -> int:
    """Runs the command line; returns the exit status: 0, 2 for a user's own mistake, 1 for a fault of ours.

    128 and the signal's number where a signal ended it.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_page())
        return 0
    import hydra

    from compress.compose import ending, register, with_own_folders
    from compress.launch.job import run
    from compress.launch.options import register_launchers
    from compress.launch.sweep import explain_launcher, outcome, place, write_page
    from compress.signals import stoppable

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and exit
    try:
        register(sys.argv[1:])
        register_launchers()
        sys.argv[1:] = with_own_folders(sys.argv[1:])
        with stoppable():
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)()
            finally:
                write_page()
        status, line = outcome()
    except Stopped as stop:
        status, line = 128 + stop.signal, f"{stop}; to go on: the same command with {place()}"
    except Exception as error:
        status, line = ending(explain_launcher(error))
        if status == 1:
            traceback.print_exc()
    if line:
        print(f"compress: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
