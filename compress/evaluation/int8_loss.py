"""Whether int8 lost accuracy beyond chance against the float file that it was made from, on validation."""

from dataclasses import dataclass
from pathlib import Path

import torch

from compress.data.dataset import Split
from compress.evaluation.inference import onnx_runner
from compress.utils.statistics import paired_difference


@dataclass(frozen=True)
class Loss:
    """Points of validation top-1 that int8 lost, with the 95 % interval."""

    points: float
    low: float
    high: float
    images: int


def validation_loss(float_file: Path, int8_file: Path, val: Split, threads: int) -> Loss | None:
    """The loss of `int8_file` against `float_file` on the same images; None where it may be chance, or a gain."""
    before, after = onnx_runner(float_file, threads), onnx_runner(int8_file, threads)
    gained = lost = 0
    for images, labels in val.batches():
        was, now = (torch.from_numpy(run(images.numpy())).argmax(1) == labels for run in (before, after))
        gained, lost = gained + int((now & ~was).sum()), lost + int((was & ~now).sum())
    delta, (low, high) = paired_difference(gained, lost, len(val))
    return Loss(-delta, -high, -low, len(val)) if high < 0 else None
