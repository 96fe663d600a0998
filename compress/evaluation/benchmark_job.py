"""The job of a measuring process, and the command that starts one. Needs no torch."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.evaluation.energy import COUNTERS

_WORKER = "compress.evaluation.benchmark_worker"

# The tasks of a `BenchmarkJob`, in the order in which they run.
MEMORY, TIME, PROFILE, ENERGY = "memory", "time", "profile", "energy"


@dataclass(frozen=True)
class BenchmarkJob:
    """Measures a file in ONNX Runtime; one process runs all tasks and prints the figures as a line of JSON.

    `rival` is another file that takes turns with it while both are timed; so is `last_end`, that of a network with
    early ends but without these. `images` is an .npy file of images
    (M, C, H, W), which the calls take in turn, in place of noise. `counters` is the folder of the CPU's energy
    counters.
    """

    tasks: tuple[str, ...]
    file: str
    shape: tuple[int, int, int]
    threads: int
    rival: str | None = None
    batch_size: int = 1
    repetitions: int = 1
    counters: str = str(COUNTERS)
    images: str | None = None
    last_end: str | None = None


@dataclass(frozen=True)
class TurnsJob:
    """Times a file in the runtime `target`: for each line of input, `calls` calls, as a line of milliseconds."""

    target: str
    file: str
    shape: tuple[int, int, int]
    threads: int
    calls: int


_JOBS: dict[str, type[BenchmarkJob] | type[TurnsJob]] = {kind.__name__: kind for kind in (BenchmarkJob, TurnsJob)}


def worker_command(job: BenchmarkJob | TurnsJob) -> tuple[list[str], dict[str, str]]:
    """Returns the command line and the environment of a measuring process."""
    return module_command(_WORKER, json.dumps({"job": type(job).__name__, **asdict(job)}))


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Returns the command line and the environment of a new process that runs a module of this package."""
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", module, *arguments], os.environ | {"PYTHONPATH": path}


def parse_job(text: str) -> BenchmarkJob | TurnsJob:
    """Returns the job in `worker_command`'s last argument."""
    fields: dict[str, Any] = json.loads(text)
    fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return _JOBS[fields.pop("job")](**fields)
