"""Loads and runs deployable files in a process of its own, so that nothing else counts in its time and memory.

`python -m compress.evaluation.benchmark_worker JOB` prints a line of JSON for `compress.evaluation.benchmark`, and a
line for each line of input for `compress.evaluation.runtimes`. `benchmark_job` makes that command.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

from compress.evaluation.benchmark_job import ENERGY, MEMORY, PROFILE, TIME, BenchmarkJob, TurnsJob, parse_job
from compress.evaluation.energy import count_joules
from compress.evaluation.profiler import node_times
from compress.export import load_target

_COUNTING_S = 2.0  # energy is counted for so long: counters change every millisecond, a two-thousandth of it
_SETTLING_S = 0.05  # a turn starts with unmeasured calls: the threads of the last runtime still spin for a while


def main() -> None:
    job = parse_job(sys.argv[1])
    if isinstance(job, TurnsJob):
        _take_turns(job)
    else:
        _take_figures(job)


def _take_figures(job: BenchmarkJob) -> None:
    """Runs the tasks of a job in ONNX Runtime, memory first, while the process holds nothing but `job.file`."""
    # One pool of threads serves all files: a session's own pool would go on spinning while the next file is timed,
    # which made every call 1.7 times as long on two cores.
    onnxruntime.set_global_thread_pool_sizes(job.threads, 1)
    image, session = _image(job), _open(job.file)
    session.run(None, {"image": image})
    peak_memory = _peak_memory_bytes()
    take: dict[str, Callable[[], dict[str, Any]]] = {
        MEMORY: lambda: {"peak_memory_bytes": peak_memory},
        TIME: lambda: _time(job, session, image),
        PROFILE: lambda: {"nodes": node_times(job.file, image, _options(), job.repetitions)},
        ENERGY: lambda: _energy(session, image, Path(job.counters)),
    }
    print(json.dumps({task: take[task]() for task in job.tasks}))


def _time(job: BenchmarkJob, session: onnxruntime.InferenceSession, image: numpy.ndarray) -> dict[str, Any]:
    """Returns the milliseconds of the calls with one image and with a batch: a list for the file, one for its rival."""
    sessions = [session, *([_open(job.rival)] if job.rival else [])]
    return {
        "single_ms": _interleaved(sessions, image, job.repetitions),
        "batch_ms": _interleaved(sessions, _images(job.batch_size, job.shape), max(3, job.repetitions // 4)),
    }


def _take_turns(job: TurnsJob) -> None:
    """Times one file in its own runtime: for each line of input some calls, printed as a line of milliseconds."""
    if job.target == "onnx":
        onnxruntime.set_global_thread_pool_sizes(job.threads, 1)
        session = _open(job.file)
        run = lambda image: session.run(None, {"image": image})
    else:
        run = load_target(job.target).open_runner(Path(job.file), job.threads)
    image = _images(1, job.shape)
    for _ in sys.stdin:
        start = time.perf_counter()
        while time.perf_counter() - start < _SETTLING_S:
            run(image)
        print(json.dumps([_milliseconds(run, image) for _ in range(job.calls)]), flush=True)


def _milliseconds(run: Callable[[numpy.ndarray], object], image: numpy.ndarray) -> float:
    start = time.perf_counter()
    run(image)
    return 1000 * (time.perf_counter() - start)


def _image(job: BenchmarkJob) -> numpy.ndarray:
    return _images(1, job.shape) if job.image is None else numpy.load(job.image)


def _images(count: int, shape: tuple[int, int, int]) -> numpy.ndarray:
    return numpy.random.default_rng(0).standard_normal((count, *shape), dtype=numpy.float32)


def _open(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return options


def _interleaved(
    sessions: list[onnxruntime.InferenceSession], image: numpy.ndarray, repetitions: int
) -> list[list[float]]:
    """Returns the milliseconds of each call, a list a session: these take turns, so that noise affects all alike."""
    calls: list[list[float]] = [[] for _ in sessions]
    for turn in range(-max(2, repetitions // 10), repetitions):
        for session, times in zip(sessions, calls, strict=True):
            start = time.perf_counter()
            session.run(None, {"image": image})
            if turn >= 0:  # the turns before are warm-up
                times.append(1000 * (time.perf_counter() - start))
    return calls


def _energy(session: onnxruntime.InferenceSession, image: numpy.ndarray, counters: Path) -> dict[str, float]:
    """Counts the energy of as many images as fit into a fixed time, one image a call."""
    images = 0

    def run_for(seconds: float) -> None:
        nonlocal images
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            session.run(None, {"image": image})
            images += 1

    run_for(_SETTLING_S)
    return {"joules": count_joules(lambda: run_for(_COUNTING_S), counters), "images": images}


def _peak_memory_bytes() -> int | None:
    """Returns the peak memory of this process; getrusage would count from the parent's peak. None outside Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
