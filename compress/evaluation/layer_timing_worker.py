"""Runs layers in a process of its own, so that nothing else counts in their time.

`python -m compress.evaluation.layer_timing_worker` reads a job as JSON and prints a line with the milliseconds of each
point, for `compress.evaluation.layer_timing`.
"""

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

from compress.evaluation.layer_timing_model import IMAGE, LayerPoint, input_shape, timing_file

_ROUNDS = 20  # at most
_ROUND_S, _LEAST_TURNS = 0.008, 7  # a round takes so long, and has at least so many turns
_QUICK = 0.1  # the quantile of a round that counts: another program seldom disturbs all calls
_AGREEMENT = 0.02  # two rounds that differ by less, as a share of the time, count as undisturbed


def main() -> None:
    job = json.load(sys.stdin)
    onnxruntime.set_global_thread_pool_sizes(job["threads"], 1)  # as the files are timed: see `benchmark_worker`
    print(json.dumps([layer_ms(_point(fields), job["precision"]) for fields in job["points"]]))


def _point(fields: dict[str, Any]) -> LayerPoint:
    fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return LayerPoint(**fields)


def layer_ms(point: LayerPoint, precision: str) -> float:
    """Returns the milliseconds of a layer: the difference of two files that take turns, by the number of its copies.

    Other programs only ever add time, and for a while: rounds follow until the two quickest agree.
    """
    image = np.random.default_rng(0).standard_normal(input_shape(point), dtype=np.float32)
    sessions = [_open(timing_file(point, precision, with_layer)) for with_layer in (True, False)]
    with_layer: list[float] = []
    without: list[float] = []
    _round(sessions, image, 2)  # the first calls reserve memory
    turns = _turns(sessions, image)
    for _ in range(_ROUNDS):
        quick = _round(sessions, image, turns)
        with_layer, without = sorted([*with_layer, quick[0]]), sorted([*without, quick[1]])
        allowed = _AGREEMENT * with_layer[0]
        if len(without) > 1 and all(times[1] - times[0] < allowed for times in (with_layer, without)):
            break
    difference = statistics.mean(with_layer[:2]) - statistics.mean(without[:2])
    return max(0.0, difference) / point.copies(precision)


def _turns(sessions: list[onnxruntime.InferenceSession], image: np.ndarray) -> int:
    """Returns how many turns fill a round."""
    start = time.perf_counter()
    _round(sessions, image, 1)
    return max(_LEAST_TURNS, int(_ROUND_S / (time.perf_counter() - start)))


def _round(sessions: list[onnxruntime.InferenceSession], image: np.ndarray, turns: int) -> list[float]:
    """Returns the milliseconds of the quicker calls of each session, the lowest tenth; these take turns."""
    calls: list[list[float]] = [[] for _ in sessions]
    for _ in range(turns):
        for session, times in zip(sessions, calls, strict=True):
            start = time.perf_counter()
            session.run(None, {IMAGE: image})
            times.append(1000 * (time.perf_counter() - start))
    return [float(np.quantile(times, _QUICK)) for times in calls]


def _open(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
