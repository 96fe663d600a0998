"""Decides whether int8 lost accuracy beyond chance against the float file that it was made from, on validation."""

from pathlib import Path

from compress.data.dataset import Split
from compress.evaluation.inference import onnx_runner, split_outputs
from compress.methods.quantization.advice import AccuracyDrop
from compress.tasks import CLASSIFICATION
from compress.tasks.base import Task


def validation_loss(
    float_file: Path, int8_file: Path, val: Split, threads: int, task: Task = CLASSIFICATION
) -> AccuracyDrop | None:
    """Returns what `int8_file` lost against `float_file` on the same images; None where it may be chance, or a gain."""
    before, after = (split_outputs(onnx_runner(file, threads), val, task) for file in (float_file, int8_file))
    delta, (low, high) = task.difference(after[0], before[0], after[1])
    return AccuracyDrop(-delta, -high, -low, len(val), task.metric.label) if high < 0 else None
