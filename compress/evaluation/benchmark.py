"""Measures time, memory, energy and profile of a deployable file, in one new process and next to the teacher's file."""

import json
import statistics
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compress.config.schema import MeasureConfig
from compress.evaluation.benchmark_job import ENERGY, MEMORY, PROFILE, TIME, BenchmarkJob, worker_command
from compress.evaluation.energy import COUNTERS, no_counter
from compress.utils.missing import Unavailable


@dataclass(frozen=True)
class Benchmark:
    """The figures of a file that a measuring process returned."""

    figures: dict[str, Any]  # for metrics.json
    profile: dict[str, Any]  # profile.json: where one image spends its time in the file, node by node
    calls_ms: dict[str, Any]  # the milliseconds of each timed call


def benchmark(
    path: Path,
    teacher: Path,
    shape: tuple[int, int, int],
    config: MeasureConfig,
    threads: int,
    no_energy: str | None = None,
    counters: Path = COUNTERS,
) -> Benchmark:
    """Measures the file `path`, but not its energy where `no_energy` states a reason or the CPU has no counter.

    Raises RuntimeError where the process fails.
    """
    return take_all(_job((), path, teacher, shape, config, threads, counters), no_energy)


def take_all(job: BenchmarkJob, no_energy: str | None) -> Benchmark:
    """Measures what `benchmark` does by a job that names no tasks yet."""
    no_energy = no_energy or no_counter(Path(job.counters))
    answer = run_job(replace(job, tasks=(MEMORY, TIME, PROFILE, *(() if no_energy else (ENERGY,)))))
    joules = Unavailable(no_energy) if no_energy else _joule_per_image(answer[ENERGY], job.counters)
    profile = {
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "threads": job.threads,
        "runs": job.repetitions,
        **answer[PROFILE],
    }
    return Benchmark(_time_and_memory(job, answer) | {"energy_joule_per_image": joules}, profile, answer[TIME])


def time_and_memory(
    path: Path, teacher: Path, shape: tuple[int, int, int], config: MeasureConfig, threads: int
) -> dict[str, Any]:
    """Returns size, latency at batch 1, throughput at `config.batch_size`, peak memory, and speed-up over `teacher`.

    Raises RuntimeError where the process fails.
    """
    job = _job((MEMORY, TIME), path, teacher, shape, config, threads)
    return _time_and_memory(job, run_job(job))


def _job(
    tasks: tuple[str, ...],
    path: Path,
    teacher: Path,
    shape: tuple[int, int, int],
    config: MeasureConfig,
    threads: int,
    counters: Path = COUNTERS,
) -> BenchmarkJob:
    rival = None if path == teacher else str(teacher)
    return BenchmarkJob(
        tasks, str(path), shape, threads, rival, config.batch_size, config.repetitions, counters=str(counters)
    )


def _time_and_memory(job: BenchmarkJob, answer: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures. The speed-up is a ratio of medians, of two files that took turns in one process."""
    own, theirs = (answer[TIME]["single_ms"][at] for at in (0, -1))
    return {
        "size_bytes": Path(job.file).stat().st_size,
        "latency_ms_p50": statistics.median(own),
        "latency_ms_p95": float(np.percentile(own, 95)),
        "throughput_images_per_s": 1000 * job.batch_size / statistics.median(answer[TIME]["batch_ms"][0]),
        "speedup_vs_teacher": statistics.median(theirs) / statistics.median(own),
        "peak_memory_bytes": answer[MEMORY]["peak_memory_bytes"]
        or Unavailable("this system does not tell a process its high-water mark"),
    }


def _joule_per_image(counted: dict[str, float], counters: str) -> float | Unavailable:
    """Returns the joules that all CPU packages used per image at batch 1, over a few seconds of images."""
    if not counted["joules"]:
        return Unavailable(f"the counters in {counters} did not move while the file ran")
    return counted["joules"] / counted["images"]


def run_job(job: BenchmarkJob) -> dict[str, dict[str, Any]]:
    """Starts the measuring process and returns its output, a record for each task.

    Raises RuntimeError where the process fails.
    """
    command, environment = worker_command(job)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the measuring process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
