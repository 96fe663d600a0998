"""A process that holds one contender's file and runs it only when it is its turn; `racing` starts it and speaks to it.

`python -m tests.benchmarks.racer '<JSON>'` reads a line of JSON a task and answers each with one.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.runtimes import RUNTIMES, Run

WARM_UP_S = 0.01
REST_S, REST_SHARE = 0.02, 0.1  # at rest is who computed for less than a tenth of 20 ms


def main() -> None:
    job = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    images = np.load(job["images"], mmap_mode="r")
    run = RUNTIMES[job["runtime"]](Path(job["path"]), job["threads"], job["batch"])
    first = np.array(images[: job["batch"]])
    run(first)  # compiles, where the runtime compiles
    start = _clocks()
    for line in itertools.chain(['{"task": "time", "calls": 3}'], sys.stdin):
        waited = [now - then for now, then in zip(_clocks(), start, strict=True)]
        task = json.loads(line)
        if task["task"] == "predict":
            np.save(task["to"], _predict(run, images, job["batch"]))
            answer = {}
        else:
            answer = {"ms": _time(run, first, task["calls"]), "waited_s": waited[0], "waited_cpu_s": waited[1]}
        _rest()
        print(json.dumps(answer), file=answers, flush=True)
        start = _clocks()


def _clocks() -> tuple[float, float]:
    """Seconds on the wall's clock, and seconds of computing by all threads of this process."""
    return time.perf_counter(), time.process_time()


def _time(run: Run, images: np.ndarray, calls: int) -> list[float]:
    """Milliseconds of each call, after some that bring code, weights and the clock of the CPU back."""
    until = time.perf_counter() + WARM_UP_S
    run(images)
    while time.perf_counter() < until:
        run(images)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run(images)
        times.append(1000 * (time.perf_counter() - start))
    return times


def _rest() -> None:
    """Waits until no thread computes: those of a runtime spin for up to 50 ms after a call, in the next one's time."""
    spent = REST_S
    while spent > REST_SHARE * REST_S:
        before = time.process_time()
        time.sleep(REST_S)
        spent = time.process_time() - before


def _predict(run: Run, images: np.ndarray, batch: int) -> np.ndarray:
    """Logits (N, K) of all images; the last batch is filled up, so that each has the size that `run` was opened for."""
    parts = []
    for first in range(0, len(images), batch):
        part = images[first : first + batch]
        filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
        parts.append(np.array(run(filled)[: len(part)]))
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
