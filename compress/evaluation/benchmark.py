"""Time and memory of a deployable file, taken in a fresh process and beside the teacher's file."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from compress.config.schema import MeasureConfig
from compress.evaluation.energy import COUNTERS, no_counter
from compress.utils.missing import Missing


def deployed_figures(
    path: Path, teacher: Path, shape: tuple[int, int, int], config: MeasureConfig, threads: int
) -> dict[str, object]:
    """Latency at batch 1, throughput at `config.batch_size`, peak memory, and the speed-up over the teacher's file.

    The two files take turns in one process: the speed-up is a ratio of medians from one run.
    Raises RuntimeError where the process fails.
    """
    job = {
        "shape": shape,
        "threads": threads,
        "batch_size": config.batch_size,
        "repetitions": config.repetitions,
    }
    rivals = [path] if path == teacher else [path, teacher]
    times = _run(job | {"task": "time", "files": [str(file) for file in rivals]})
    memory = _run(job | {"task": "memory", "files": [str(path)]})
    own, theirs = times["single_ms"][0], times["single_ms"][-1]
    return {
        "size_bytes": path.stat().st_size,
        "latency_ms_p50": statistics.median(own),
        "latency_ms_p95": float(np.percentile(own, 95)),
        "throughput_images_per_s": 1000 * config.batch_size / statistics.median(times["batch_ms"][0]),
        "speedup_vs_teacher": statistics.median(theirs) / statistics.median(own),
        "peak_memory_bytes": memory["peak_memory_bytes"]
        or Missing("this system does not tell a process its high-water mark"),
    }


def joule_per_image(
    path: Path, shape: tuple[int, int, int], threads: int, counters: Path = COUNTERS
) -> float | Missing:
    """Joules that all CPU packages draw for an image at batch 1, counted over a few seconds of images.

    Raises RuntimeError where the process fails.
    """
    if cause := no_counter(counters):
        return Missing(cause)
    job = {"task": "energy", "files": [str(path)], "shape": shape, "threads": threads, "counters": str(counters)}
    counted = _run(job)
    if not counted["joules"]:
        return Missing(f"the counters in {counters} did not move while the file ran")
    return counted["joules"] / counted["images"]


def profile(path: Path, shape: tuple[int, int, int], config: MeasureConfig, threads: int) -> dict[str, object]:
    """profile.json's content: where one image spends its time in the file, node by node.

    Raises RuntimeError where the process fails.
    """
    job = {"task": "profile", "shape": shape, "threads": threads, "repetitions": config.repetitions}
    return {
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "threads": threads,
        "runs": config.repetitions,
        **_run(job | {"files": [str(path)]}),
    }


def worker(job: dict) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a measuring process."""
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "compress.evaluation.benchmark_worker", json.dumps(job)]
    return command, os.environ | {"PYTHONPATH": path}


def _run(job: dict) -> dict:
    command, environment = worker(job)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the measuring process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
