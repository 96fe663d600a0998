"""Runs a small pipeline and kills it, again and again, at random moments, until it has ended often enough.

A process of its own: it imports once and forks each attempt, so that a kill costs no start. Prints a JSON line.
"""

import json
import logging
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from compress.config.schema import CacheConfig
from compress.pipeline.experiment import run_experiment
from compress.utils.files import MODEL, ONNX, digest_of_file
from tests.conftest import make_tiny_config


def main(npz: Path, folder: Path, kills: int, seed: int) -> None:
    """Digests of an undisturbed run, and of as many as it takes to kill `kills` attempts."""
    start = time.monotonic()
    _wait(_start(npz, folder / "whole"))
    lasted_s = time.monotonic() - start
    chance = random.Random(seed)
    killed, ended = 0, []
    while killed < kills:
        run = folder / f"killed_{len(ended)}"
        while True:
            pid = _start(npz, run)
            time.sleep(chance.uniform(0, 0.5 * lasted_s))
            if _is_running(pid):
                os.kill(pid, signal.SIGKILL)
                killed += 1
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 or killed >= kills:
                break
        _wait(_start(npz, run))
        ended.append(_digests(run))
    print(json.dumps({"killed": killed, "whole": _digests(folder / "whole"), "ended": ended}))


def _start(npz: Path, run: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        logging.disable()
        config = replace(make_tiny_config(npz), cache=CacheConfig(str(run / "cache")))
        config.train.checkpoint_minutes = 0
        run_experiment(config, run)
        status = 0
    finally:
        os._exit(status)


def _is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _wait(pid: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"an undisturbed run ended with {status}")


def _digests(run: Path) -> dict[str, str]:
    return {
        f"{stage.name}/{file}": digest_of_file(stage / file)
        for stage in sorted(run.glob("0*"))
        for file in (MODEL, ONNX)
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
