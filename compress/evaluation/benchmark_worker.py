"""Loads and runs deployable files in a process of its own, so that nothing else counts in its time and memory.

`python -m compress.evaluation.benchmark_worker JOB` prints a line of JSON for `compress.evaluation.benchmark`, and a
line for each line of input for `compress.evaluation.runtimes`. `benchmark_job` makes that command.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import onnxruntime

from compress.evaluation.benchmark_job import ENERGY, MEMORY, PROFILE, TIME, BenchmarkJob, TurnsJob, parse_job
from compress.evaluation.energy import count_joules
from compress.evaluation.profiler import node_times
from compress.export import load_target
from compress.utils.exit_names import NEVER, THRESHOLDS

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
    images, session = _single_images(job), _open(job.file)
    _runner(session, _nobody_leaves(session))(images[0])
    peak_memory = _peak_memory_bytes()
    take: dict[str, Callable[[], dict[str, Any]]] = {
        MEMORY: lambda: {"peak_memory_bytes": peak_memory},
        TIME: lambda: _time(job, session, images),
        PROFILE: lambda: {"nodes": node_times(job.file, images, _options(), job.repetitions)},
        ENERGY: lambda: _energy(session, images, Path(job.counters)),
    }
    print(json.dumps({task: take[task]() for task in job.tasks}))


def _time(job: BenchmarkJob, session: onnxruntime.InferenceSession, images: list[numpy.ndarray]) -> dict[str, Any]:
    """Returns the milliseconds of the calls with one image and with a batch: a list for the file, one for its rival.

    Of a file with exits it adds `to_the_end_ms`, those of the same images where none may leave, and `last_end_ms`,
    those of the job's file without exits. On noise, which may leave anywhere, all its times are to the end.
    """
    nobody_leaves = _nobody_leaves(session)
    to_the_end = _runner(session, nobody_leaves)
    runs = [to_the_end if job.images is None else _runner(session)]
    runs += [_runner(_open(job.rival))] if job.rival else []
    others = {"to_the_end_ms": to_the_end} if nobody_leaves else {}
    others |= {"last_end_ms": _runner(_open(job.last_end))} if job.last_end else {}
    single = _interleaved([*runs, *others.values()], images, job.repetitions)
    batch = _interleaved(runs, _batches(job), max(3, job.repetitions // 4))
    return {"single_ms": single[: len(runs)], "batch_ms": batch} | dict(zip(others, single[len(runs) :], strict=True))


def _runner(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, numpy.ndarray] = MappingProxyType({})
) -> Callable[[numpy.ndarray], object]:
    """Returns the function that runs images (N, C, H, W) through a session, with further inputs."""
    return lambda images: session.run(None, {"image": images, **feeds})


def _nobody_leaves(session: onnxruntime.InferenceSession) -> dict[str, numpy.ndarray]:
    """Returns the input with which no image leaves at an exit; an empty dict of a file without exits."""
    inputs = [value for value in session.get_overridable_initializers() if value.name == THRESHOLDS]
    return {value.name: numpy.full(value.shape, NEVER, numpy.float32) for value in inputs}


def _take_turns(job: TurnsJob) -> None:
    """Times one file in its own runtime: for each line of input some calls, printed as a line of milliseconds."""
    if job.target == "onnx":
        onnxruntime.set_global_thread_pool_sizes(job.threads, 1)
        session = _open(job.file)
        run = _runner(session, _nobody_leaves(session))
    else:
        run = load_target(job.target).open_runner(Path(job.file), job.threads)
    image = _noise(1, job.shape)
    for _ in sys.stdin:
        start = time.perf_counter()
        while time.perf_counter() - start < _SETTLING_S:
            run(image)
        print(json.dumps([_milliseconds(run, image) for _ in range(job.calls)]), flush=True)


def _milliseconds(run: Callable[[numpy.ndarray], object], image: numpy.ndarray) -> float:
    start = time.perf_counter()
    run(image)
    return 1000 * (time.perf_counter() - start)


def _single_images(job: BenchmarkJob) -> list[numpy.ndarray]:
    """Returns images (1, C, H, W), which take turns."""
    images = _noise(1, job.shape) if job.images is None else numpy.load(job.images)
    return list(images[:, None])


def _batches(job: BenchmarkJob) -> list[numpy.ndarray]:
    """Returns batches (job.batch_size, C, H, W), which take turns."""
    if job.images is None:
        return [_noise(job.batch_size, job.shape)]
    images = numpy.load(job.images)
    starts = range(0, max(1, len(images) - job.batch_size + 1), job.batch_size)
    return [numpy.resize(images[start : start + job.batch_size], (job.batch_size, *job.shape)) for start in starts]


def _noise(count: int, shape: tuple[int, int, int]) -> numpy.ndarray:
    return numpy.random.default_rng(0).standard_normal((count, *shape), dtype=numpy.float32)


def _open(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return options


def _interleaved(
    runs: list[Callable[[numpy.ndarray], object]], inputs: list[numpy.ndarray], repetitions: int
) -> list[list[float]]:
    """Returns the milliseconds of each call, a list for each of `runs`: these take turns, so that noise affects all."""
    calls: list[list[float]] = [[] for _ in runs]
    for turn in range(-max(2, repetitions // 10), repetitions):
        for run, times in zip(runs, calls, strict=True):
            milliseconds = _milliseconds(run, inputs[turn % len(inputs)])
            if turn >= 0:  # the turns before are warm-up
                times.append(milliseconds)
    return calls


def _energy(session: onnxruntime.InferenceSession, images: list[numpy.ndarray], counters: Path) -> dict[str, float]:
    """Counts the energy of as many images as fit into a fixed time, one image a call."""
    count = 0

    def run_for(seconds: float) -> None:
        nonlocal count
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            session.run(None, {"image": images[count % len(images)]})
            count += 1

    run_for(_SETTLING_S)
    return {"joules": count_joules(lambda: run_for(_COUNTING_S), counters), "images": count}


def _peak_memory_bytes() -> int | None:
    """Returns the peak memory of this process; getrusage would count from the parent's peak. None outside Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
