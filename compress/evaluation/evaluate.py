"""All figures of a stage: the content of metrics.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.config.schema import MeasureConfig
from compress.data.dataset import Data
from compress.evaluation.benchmark import benchmark
from compress.evaluation.concurrent_runs import runs_beside
from compress.evaluation.cuda import cuda_latency
from compress.evaluation.environment import environment
from compress.evaluation.examples import Examples
from compress.evaluation.flops import count_cost
from compress.evaluation.inference import onnx_runner, predict, validation_figures
from compress.evaluation.runtimes import target_figures
from compress.export import TARGETS, load_target
from compress.methods.restore import float_network, restore, restore_float
from compress.models.artifact import read_tensors
from compress.tasks import TASKS
from compress.utils.files import METRICS, ONNX, PREDICTIONS, read_json
from compress.utils.missing import with_causes


@dataclass
class Evaluation:
    """What measuring a stage brings to its folder."""

    metrics: dict[str, Any]  # metrics.json
    predictions: dict[str, torch.Tensor]  # each test image's label, and what the files say of it
    profile: dict[str, Any]  # profile.json
    examples: dict[str, torch.Tensor] | None  # examples.safetensors; None for the teacher


def evaluate_stage(
    folder: Path,
    teacher: Path,
    spent: dict[str, Any],
    left_out: dict[str, list[dict[str, str]]],
    data: Data,
    config: MeasureConfig,
    device: torch.device,
    threads: int,
) -> Evaluation:
    """Every figure of what lies in `folder`.

    The test split is read here, once. `teacher` is the teacher's folder: `folder` itself for the teacher. `spent`
    is what computing the stage took, `left_out` names the further targets whose files lie there, each with the layers
    that its runtime does not run as asked.
    """
    beside = runs_beside()
    saved = restore(folder, device)
    runners = {"onnx": onnx_runner(folder / ONNX, threads)} | {
        name: load_target(name).open_runner(folder / TARGETS[name][0], threads) for name in left_out
    }
    reference = read_tensors(teacher / PREDICTIONS) if folder != teacher else None
    task = TASKS[data.task]
    examples = Examples(reference["deployed_top1"]) if reference and "deployed_top1" in reference else None
    show = (lambda images, labels, logits: examples.add(images, labels, logits.argmax(1))) if examples else None
    found = predict(saved.network, runners, data.test, device, show)
    taught = read_json(teacher / METRICS)[f"deployed_val_{task.metric.key}_percent"] if folder != teacher else None
    validation = validation_figures(runners["onnx"], data.val, task, taught)
    del runners  # with their threads, before anything is timed
    predictions = task.predictions(found.targets, found.logits, found.deployed)
    params, macs = count_cost(float_network(saved.spec), data.shape)
    others = f"{beside} other runs drew from the same counters" if beside else None
    measured = benchmark(folder / ONNX, teacher / ONNX, data.shape, config, threads, no_energy=others)
    figures = {
        "metric": task.metric.key,
        **task.figures(found.logits, found.deployed["onnx"], found.targets),
        **task.compare(predictions, reference),
        **validation,
        "params": params,
        "macs": macs,
        **measured.figures,
        "targets": target_figures(folder, left_out, found, task, data.shape, config, threads),
        **cuda_latency(folder, data.shape, device, config.repetitions),
        **spent,
        "environment": environment(threads) | {"runs_beside": max(beside, runs_beside())},
    }
    shown = None
    if examples:
        shown = examples.tensors(restore_float(teacher), restore_float(folder), data.test, predictions["deployed_top1"])
    return Evaluation(with_causes(figures), predictions, measured.profile, shown)
