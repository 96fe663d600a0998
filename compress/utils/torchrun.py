"""Reads what torchrun sets for a process, and writes the error file that it reads. Needs no torch."""

import json
import os
import time
from pathlib import Path


def rank() -> int:
    """Returns the number of this process; 0 for the first, and without torchrun."""
    return _number("RANK", 0)


def world_size() -> int:
    """Returns how many processes torchrun started, on all machines."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Returns how many of these processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def write_error_file(message: str) -> None:
    """Writes why this process ends, for torchrun, which prints the message of the process that ended first."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:  # in the form of torch.distributed.elastic.multiprocessing.errors.ErrorHandler
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def _number(name: str, default: int) -> int:
    """Reads a variable in torchrun's processes only: some schedulers set the same variables for other purposes."""
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else default
