"""Measures a detector's file that ends in non-maximum suppression next to the one without."""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.config.schema import MeasureConfig
from compress.data.dataset import Split
from compress.evaluation import benchmark
from compress.evaluation.benchmark_job import TIME, BenchmarkJob
from compress.export.onnx_session import open_session
from compress.utils.average_precision import average_precision, match
from compress.utils.detections import pad
from compress.utils.files import NMS_ONNX, ONNX
from compress.utils.resampling import mean_over_labels


def nms_figures(folder: Path, split: Split, classes: int, config: MeasureConfig, threads: int) -> dict[str, Any]:
    """Returns size, mAP50 and latency of model_nms.onnx in `folder`, on the images of `split`.

    The two files take turns on one of the images: how many boxes there are decides what the suppression costs.
    """
    path = folder / NMS_ONNX
    found = _detections(path, split, threads)
    image = next(replace(split, batch_size=1).batches())[0].numpy()
    with tempfile.TemporaryDirectory() as scratch_dir:
        example = Path(scratch_dir) / "image.npy"
        np.save(example, image)
        job = BenchmarkJob(
            (TIME,), str(path), image.shape[1:], threads, str(folder / ONNX), 1, config.repetitions, images=str(example)
        )
        own, plain = benchmark.run_job(job)[TIME]["single_ms"]
    return {
        "file": NMS_ONNX,
        "size_bytes": path.stat().st_size,
        "map50_percent": float(mean_over_labels(average_precision(match(found, split.labels.numpy(), classes)))[0]),
        "latency_ms_p50": statistics.median(own),
        "latency_ms_p95": float(np.percentile(own, 95)),
        "latency_ms_p50_without": statistics.median(plain),
    }


def _detections(path: Path, split: Split, threads: int) -> np.ndarray:
    """Returns the detections (N, 100, 6) of the file on all images of `split`."""
    session, rows = open_session(path, threads), []
    for images, _ in split.batches():
        (found,) = session.run(None, {"image": images.numpy()})
        for number in range(len(images)):
            own = found[found[:, 0] == number][:, 1:]
            rows.append(own[np.argsort(-own[:, 1], kind="stable")])
    return pad(rows)
