"""What torchrun tells a process that it starts, and what it wants to hear of one that fails. No torch."""

import json
import os
import time
from pathlib import Path


def rank() -> int:
    """Of this process; 0 for the first, and for one that torchrun did not start."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes torchrun started, on all machines."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """How many of them run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def last_words(message: str) -> None:
    """Writes down why this process ends, for torchrun: it repeats the words of the one that ended first as its last."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:  # in the form of torch.distributed.elastic.multiprocessing.errors.ErrorHandler
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def _number(name: str, default: int) -> int:
    """Of torchrun's own processes only: some schedulers set the same variables for other ends."""
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else default
