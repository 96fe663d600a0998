"""Measures each layer's cost in int8 on the exported file in ONNX Runtime, and selects the few that must stay float.

A layer's cost is the loss when it alone is int8 and all others are float. The opposite, the gain when it alone is
float, is a small difference of two figures that the rounding of all other layers blurs. It also misses two layers with
a tensor between them that suffers from int8: the tensor stays int8 until both are float.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import inspect_quantization
from compress.export.onnx_session import open_session
from compress.methods.quantization.mixed_precision import WeightedLayer, weighted_layers
from compress.methods.quantization.mixed_precision_onnx import exclude_layers_onnx
from compress.methods.quantization.pt2e import convert
from compress.tasks import CLASSIFICATION, Task
from compress.utils.console import progress
from compress.utils.errors import UserError
from compress.utils.metric import Metric

log = logging.getLogger(__name__)

ROUNDING = 1e-9  # percentage points: rounding must not refuse a drop of exactly what is allowed

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # -> images (N, C, H, W) and labels (N,), always in one order


@dataclass(frozen=True)
class Quality:
    """The accuracy of a file with some layers in float on the images."""

    score_percent: float  # the task's metric
    kl_nats: float  # mean divergence of its predictions from those of the float network


class MixedPrecisionFiles:
    """The exported network with any of its layers in float: edits the file, runs it, and caches the result."""

    def __init__(
        self,
        prepared: GraphModule,
        uncorrected: GraphModule,
        shape: tuple[int, int, int],
        batches: Batches,
        float_logits: Tensor,
        task: Task = CLASSIFICATION,
    ):
        """Exports `prepared`, which is calibrated, corrected or trained; `float_logits` (N, K) are the reference.

        A layer in float takes its weights from `uncorrected`: corrections for rounding are wrong without rounding.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            export_onnx(convert(prepared), path, shape, task.files)
            self._exported = path.read_bytes()
            int8 = {layer.name for layer in inspect_quantization(path) if layer.quantized}
        self.layers = {layer.name: layer for layer in weighted_layers(uncorrected) if layer.name in int8}
        self._batches, self._float_logits, self._task = batches, float_logits.double(), task
        self.images = len(float_logits)
        self._known: dict[frozenset[str], Quality] = {}

    def quality(self, floats: Iterable[str]) -> Quality:
        """Returns the quality of the file with the layers `floats` in float."""
        names = frozenset(floats)
        if names not in self._known:
            self._known[names] = self._measure(
                exclude_layers_onnx(self._exported, [self.layers[name] for name in names])
            )
        return self._known[names]

    def _measure(self, file: bytes) -> Quality:
        session = open_session(file, torch.get_num_threads())
        pairs = [
            (self._task.files.join(session.run(None, {"image": images.numpy()})), labels)
            for images, labels in self._batches()
        ]
        logits, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        divergence = self._task.distance(logits.double(), self._float_logits).mean().item()
        return Quality(self._task.score(logits, labels), divergence)


def control_accuracy(
    files: MixedPrecisionFiles, float_percent: float, max_drop_points: float, metric: Metric = CLASSIFICATION.metric
) -> dict[str, Any]:
    """Returns the table of sensitivity.json: each layer's cost in int8, and which stay float to keep within the drop.

    Raises UserError where no number of float layers keeps within it.
    """
    int8 = files.quality([])
    ranked = _rank(files)
    log.info("sensitivity: int8 has %.2f %% on validation, float %.2f %%", int8.score_percent, float_percent)
    kept = _select_float_layers(files, ranked, float_percent - max_drop_points)
    if kept is None:
        raise _unreachable(files, ranked, float_percent, max_drop_points, metric)
    final = files.quality(kept)
    log.info("sensitivity: %d of %d layers stay float, %.2f %%", len(kept), len(ranked), final.score_percent)
    return {
        "split": "val",
        "images": files.images,
        "max_drop_points": max_drop_points,
        f"float_{metric.key}_percent": float_percent,
        f"int8_{metric.key}_percent": int8.score_percent,
        "int8_kl_nats": int8.kl_nats,
        f"chosen_{metric.key}_percent": final.score_percent,
        "chosen_kl_nats": final.kl_nats,
        "layers": [
            _row(layer, _quality_alone(files, name), name in kept, metric.key) for name, layer in files.layers.items()
        ],
    }


def _quality_alone(files: MixedPrecisionFiles, name: str) -> Quality:
    """Returns the quality of the file in which this layer is int8 and all others are float."""
    return files.quality(files.layers.keys() - {name})


def _rank(files: MixedPrecisionFiles) -> list[str]:
    """Returns the layers in order of their cost, the highest first."""
    with progress("sensitivity", len(files.layers)) as bar:
        for name in files.layers:
            bar.note(name)
            _quality_alone(files, name)
            bar.advance()
    return sorted(files.layers, key=lambda name: -_quality_alone(files, name).kl_nats)


def _select_float_layers(files: MixedPrecisionFiles, ranked: list[str], least_percent: float) -> list[str] | None:
    """Returns few layers which in float keep `least_percent`; None where no beginning of `ranked` does.

    The search is greedy: it takes the shortest beginning of `ranked` that suffices, then returns to int8, from its end,
    each layer that is not needed. Every remaining layer is needed, but another set may be smaller.
    """

    def suffices(names: list[str]) -> bool:
        return files.quality(names).score_percent >= least_percent - ROUNDING

    count = next((count for count in range(len(ranked) + 1) if suffices(ranked[:count])), None)
    if count is None:
        return None
    kept = ranked[:count]
    for name in reversed(ranked[:count]):
        fewer = [other for other in kept if other != name]
        if suffices(fewer):
            kept = fewer
    return kept


def _unreachable(
    files: MixedPrecisionFiles, ranked: list[str], float_percent: float, max_drop_points: float, metric: Metric
) -> UserError:
    best = max(range(len(ranked) + 1), key=lambda count: files.quality(ranked[:count]).score_percent)
    lost = float_percent - files.quality(ranked[:best]).score_percent
    return UserError(
        f"quantize.max_drop_points={max_drop_points:g}, while the best, {best} of {len(ranked)} layers in float, loses "
        f"{lost:.2f} points of validation {metric.label}",
        "a drop that some number of float layers keeps",
        f"set it to {lost:.2f} or more, train longer (quantize.epochs), or calibrate only (quantize.mode=ptq)",
    )


def _row(layer: WeightedLayer, alone: Quality, kept: bool, key: str) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "operator": layer.operator,
        "weights": layer.weight.numel(),
        "macs": layer.macs,
        "kl_nats": alone.kl_nats,
        f"{key}_percent": alone.score_percent,
        "kept_float": kept,
    }
