"""Measures single layers in ONNX Runtime, in one new process for many. Needs no torch."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict

from compress.evaluation.benchmark_job import module_command
from compress.evaluation.layer_timing_model import LayerPoint

_WORKER = "compress.evaluation.layer_timing_worker"


def measure_layers(points: Sequence[LayerPoint], precision: str, threads: int) -> list[float]:
    """Returns the milliseconds of each layer for one image, as a part of a whole "int8" or "float32" file.

    Raises RuntimeError where the process fails.
    """
    command, environment = module_command(_WORKER)
    job = {"precision": precision, "threads": threads, "points": [asdict(point) for point in points]}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures layers ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
