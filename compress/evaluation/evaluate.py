"""Measures all figures of a stage: the content of metrics.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.config.schema import MeasureConfig
from compress.data.dataset import Data
from compress.evaluation.benchmark import benchmark
from compress.evaluation.concurrent_runs import count_concurrent_runs
from compress.evaluation.cuda import cuda_latency
from compress.evaluation.energy_estimate import estimate_energy_mj
from compress.evaluation.environment import environment
from compress.evaluation.example_boxes import example_boxes
from compress.evaluation.example_images import ExampleImages
from compress.evaluation.exits import evaluate_exits, exit_benchmark
from compress.evaluation.flops import count_cost
from compress.evaluation.inference import onnx_runner, predict, split_outputs, validation_figures
from compress.evaluation.runtimes import target_figures
from compress.evaluation.with_nms import nms_figures
from compress.export import TARGETS, load_target
from compress.methods.restore import float_network, restore, restore_float
from compress.models.artifact import read_tensors
from compress.tasks import TASKS
from compress.tasks.base import Predictions, Task
from compress.utils.cpu import cache_bytes
from compress.utils.files import METRICS, NMS_ONNX, ONNX, PREDICTIONS, read_json
from compress.utils.missing import with_causes


@dataclass(frozen=True)
class StageFolder:
    """A stage whose files are written, and what is known of it before it is measured."""

    folder: Path
    teacher: Path  # the teacher's folder; `folder` itself for the teacher
    training_cost: dict[str, Any]  # figures of what computing the stage cost
    skipped_layers: dict[
        str, list[dict[str, str]]
    ]  # further targets, each with the layers that it does not run as asked

    @property
    def is_teacher(self) -> bool:
        return self.folder == self.teacher


@dataclass
class Evaluation:
    """What measuring a stage adds to its folder."""

    metrics: dict[str, Any]  # metrics.json
    predictions: dict[str, torch.Tensor]  # each test image's label, and the predictions of the files
    profile: dict[str, Any]  # profile.json
    examples: dict[str, torch.Tensor] | None  # examples.safetensors; None for the teacher
    exits: dict[str, torch.Tensor] | None  # exits.safetensors; None for a network without exits


def evaluate_stage(
    stage: StageFolder, data: Data, config: MeasureConfig, device: torch.device, threads: int
) -> Evaluation:
    """Measures every figure of a stage. This is the only place that reads the test split."""
    folder, teacher = stage.folder, stage.teacher
    concurrent_runs = count_concurrent_runs()
    saved = restore(folder, device)
    runners = {"onnx": onnx_runner(folder / ONNX, threads)} | {
        name: load_target(name).open_runner(folder / TARGETS[name][0], threads) for name in stage.skipped_layers
    }
    reference = None if stage.is_teacher else read_tensors(teacher / PREDICTIONS)
    task = TASKS[data.task]
    examples = ExampleImages(reference["deployed_top1"]) if reference and "deployed_top1" in reference else None
    add_examples = (lambda images, labels, logits: examples.add(images, labels, logits.argmax(1))) if examples else None
    outputs = predict(saved.network, runners, data.test, device, task, add_examples)
    val = split_outputs(runners["onnx"], data.val, task)
    del runners  # with their threads, before anything is timed
    predictions = task.predictions(outputs.targets, outputs.logits, outputs.deployed)
    params, macs = count_cost(float_network(saved.spec), data.shape)
    no_energy = f"{concurrent_runs} other runs drew from the same counters" if concurrent_runs else None
    exits = evaluate_exits(folder / ONNX, saved, data.test, device, threads) if saved.spec.exits else None
    if exits:
        measured, times = exit_benchmark(folder / ONNX, teacher / ONNX, data.test, config, threads, no_energy)
    else:
        measured = benchmark(folder / ONNX, teacher / ONNX, data.shape, config, threads, no_energy=no_energy)
    has_nms = (folder / NMS_ONNX).is_file()
    figures = {
        "metric": task.metric.key,
        **task.figures(outputs.logits, outputs.deployed["onnx"], outputs.targets),
        **task.compare(predictions, reference),
        **validation_figures(*val, task, _teacher_val_percent(stage, task)),
        **task.screening(val, (outputs.deployed["onnx"], outputs.targets), config.specificity),
        "params": params,
        "macs": macs,
        **measured.figures,
        "estimated_energy_mj_per_image": estimate_energy_mj(
            folder / ONNX, cache_bytes(), exits.shares() if exits else (1.0,)
        ),
        **({"mean_macs": exits.mean_macs, "exits": exits.figures | times} if exits else {}),
        "targets": target_figures(folder, stage.skipped_layers, outputs, task, data.shape, config, threads),
        **({"with_nms": nms_figures(folder, data.test, len(data.classes), config, threads)} if has_nms else {}),
        **cuda_latency(folder, data.shape, device, config.repetitions),
        **stage.training_cost,
        "environment": environment(threads) | {"runs_beside": max(concurrent_runs, count_concurrent_runs())},
    }
    if examples:
        networks = restore_float(stage.teacher), restore_float(stage.folder)
        figures |= examples.heatmap_figures(*networks)
        images: Predictions | None = examples.tensors(*networks, data.test, predictions["deployed_top1"])
    else:
        images = _example_boxes(data, predictions, reference)
    return Evaluation(with_causes(figures), predictions, measured.profile, images, exits.tensors if exits else None)


def _example_boxes(data: Data, predictions: Predictions, reference: Predictions | None) -> Predictions | None:
    """Returns the content of examples.safetensors with boxes; None for the teacher and for a task without them."""
    if reference and "deployed_detections" in reference:
        return example_boxes(data.test, predictions, reference)
    return None


def _teacher_val_percent(stage: StageFolder, task: Task) -> float | None:
    """Returns the metric of the teacher's file on the validation images; None for the teacher itself."""
    if stage.is_teacher:
        return None
    return read_json(stage.teacher / METRICS)[f"deployed_val_{task.metric.key}_percent"]
