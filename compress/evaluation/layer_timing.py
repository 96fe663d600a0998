"""Measures single layers in ONNX Runtime, in one new process for many. Needs no torch."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from compress.evaluation.layer_timing_model import LayerPoint

_WORKER = "compress.evaluation.layer_timing_worker"


def measure_layers(points: Sequence[LayerPoint], precision: str, threads: int) -> list[float]:
    """Returns the milliseconds of each layer for one image, as a part of a whole "int8" or "float32" file.

    Raises RuntimeError where the process fails.
    """
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    job = {"precision": precision, "threads": threads, "points": [asdict(point) for point in points]}
    done = subprocess.run(
        [sys.executable, "-m", _WORKER],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures layers ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
