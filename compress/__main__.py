"""The command line: composes the config, checks it and hands it to the pipeline."""

import errno
import logging
import os
import sys
import traceback
from pathlib import Path

from compress.errors import Stopped, UserError, tell
from compress.help import CONF, help_page
from compress.torchrun import rank, world_size

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def main() -> int:
    """Runs the command line; returns the exit status: 0, 2 for a user's own mistake, 1 for a fault of ours.

    128 and the signal's number where a signal ended a training.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        if rank() == 0:
            print(help_page())
        return 0
    if rank() > 0:
        return _follow()
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from compress.compose import explain, register, to_config

    sweeps: set[Path] = set()  # the folder that a multirun's jobs write into
    places: list[str] = []  # the override that leads the same command to where it was

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def run(composed: DictConfig) -> None:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            sweeps.add(Path(job.sweep.dir))
        places.append(f"hydra.sweep.dir={job.sweep.dir}" if sweeps else f"hydra.run.dir={job.runtime.output_dir}")
        try:
            config = to_config(composed)
            from compress.study import run_study  # after the check: torch takes seconds to import

            run_study(config, Path(job.runtime.output_dir))
        except Exception as error:
            if sweeps:  # the other jobs go on, and the sweep's page says why this one ended
                logging.getLogger("compress").error("%s", error)
            raise

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and exit
    register()
    try:
        try:
            run()
        finally:
            for folder in sweeps:
                from compress.report.write import write_sweep  # it takes as long to import as the rest of the start

                write_sweep(folder)
    except Stopped as stop:
        tell(f"{stop}; to go on: the same command with {places[-1]}")
        return 128 + stop.signal
    except UserError as error:
        tell(str(error))
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        tell(str(explain(error)))
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            mistake = UserError(
                str(error), "files that can be written, and room for them", "free space or change hydra.run.dir"
            )
            tell(str(mistake))
            return 2
        return _fault(error)
    if world_size() > 1:
        from compress.devices import dismiss

        dismiss()
    return 0


def _follow() -> int:
    """The exit status of a process that another one leads."""
    from compress.compute import follow

    try:
        follow()
    except Stopped as stop:
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


if __name__ == "__main__":
    sys.exit(main())
