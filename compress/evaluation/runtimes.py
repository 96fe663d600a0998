"""Measures the further targets of a stage: their files, and their time next to model.onnx."""

import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from compress.config.schema import MeasureConfig
from compress.evaluation.benchmark_job import TurnsJob, worker_command
from compress.evaluation.inference import Outputs
from compress.export import TARGETS, load_target
from compress.tasks.base import Task
from compress.utils.files import ONNX

_ROUNDS = 10


def target_figures(
    folder: Path,
    skipped_layers: dict[str, list[dict[str, str]]],
    outputs: Outputs,
    task: Task,
    shape: tuple[int, int, int],
    config: MeasureConfig,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Returns metrics.json's `targets`: a record of each target in `skipped_layers`, whose files are in `folder`."""
    return {
        name: {
            "file": TARGETS[name][0],
            "size_bytes": sum((folder / file).stat().st_size for file in TARGETS[name]),
            "input_shape": load_target(name).input_shape(shape),
            "runtime_version": version(name),
            **task.target_figures(outputs.logits, outputs.deployed[name], outputs.targets),
            **_latency(name, folder, shape, config, threads),
            "left_out": rows,
        }
        for name, rows in skipped_layers.items()
    }


def _latency(
    name: str, folder: Path, shape: tuple[int, int, int], config: MeasureConfig, threads: int
) -> dict[str, float]:
    """Returns latency at batch 1 and speed-up over model.onnx: two processes, one a runtime, take turns.

    In one process, the threads of the waiting runtime would go on spinning for a while next to the other's.
    """
    calls = math.ceil(config.repetitions / _ROUNDS)
    own: list[float] = []
    onnx: list[float] = []
    with (
        _turns(TurnsJob(name, str(folder / TARGETS[name][0]), shape, threads, calls)) as own_turns,
        _turns(TurnsJob("onnx", str(folder / ONNX), shape, threads, calls)) as onnx_turns,
    ):
        for _ in range(_ROUNDS):
            own += next(own_turns)
            onnx += next(onnx_turns)
    return {
        "latency_ms_p50": statistics.median(own),
        "latency_ms_p95": float(np.percentile(own, 95)),
        "speedup_vs_onnx": statistics.median(onnx) / statistics.median(own),
    }


@contextmanager
def _turns(job: TurnsJob) -> Iterator[Iterator[list[float]]]:
    """Runs a measuring process while the context lasts; each item is a turn, the milliseconds of its calls.

    The iterator raises RuntimeError where the process has failed.
    """
    command, environment = worker_command(job)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process,
    ):
        requests, answers = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)  # both are pipes

        def turns() -> Iterator[list[float]]:
            while True:
                with suppress(BrokenPipeError):  # the process has failed, and its empty answer is handled below
                    requests.write(b"\n")
                answer = answers.readline()
                if not answer:
                    errors.seek(0)
                    cause = errors.read().decode(errors="replace").strip()[-2000:]
                    raise RuntimeError(f"the measuring process of {job.target} failed: {cause}")
                yield json.loads(answer)

        yield turns()
