"""Quantizes the network to int8: calibrated after training, or trained with the rounding in the loop."""

import copy
import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from compress.config.stage_settings import QuantizeConfig
from compress.data.dataset import Split
from compress.methods.conditional.calibrate import calibrate_exits
from compress.methods.conditional.graph import GraphEnds
from compress.methods.conditional.selection import set_choice
from compress.methods.conditional.training import ends_loss
from compress.methods.distillation.losses import teacher_loss
from compress.methods.distillation.teacher_logits import require_teacher, teacher_function
from compress.methods.quantization.correction import correct
from compress.methods.quantization.cpu_target import WEIGHT_BITS, choose_target
from compress.methods.quantization.equalization import Equalization
from compress.methods.quantization.mixed_precision import exclude_layers
from compress.methods.quantization.pt2e import (
    calibrate,
    convert,
    freeze_batch_norm,
    freeze_observers,
    prepare,
    prepare_equalized,
)
from compress.methods.quantization.sensitivity import MixedPrecisionFiles, control_accuracy
from compress.models.artifact import Artifact
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.validation import split_logits
from compress.utils.cpu import cpu_flags
from compress.utils.metric import Metric
from compress.utils.tensors import to_device

# Shares of the epochs after which batch norm's statistics, then the activation ranges, stay as they are, so that the
# last epochs train the very function that ships (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
_FREEZE_BATCH_NORM, _FREEZE_RANGES = 0.34, 0.67

log = logging.getLogger("compress")


def quantize(artifact: Artifact, config: QuantizeConfig, context: Context) -> Artifact:
    """Quantizes the artifact's network; `config.calibration_samples` train images decide the activation ranges.

    The thresholds of exits are chosen anew, by the logits of int8.
    """
    example = torch.zeros(1, *context.data.shape, device=context.device)
    target = choose_target(config.target, cpu_flags())
    bits, qat = WEIGHT_BITS[target], config.mode == "qat"
    equalization = None
    if config.equalize:
        prepared, equalization = prepare_equalized(artifact.network, example, bits, qat, config.calibration)
    else:
        prepared = prepare(artifact.network, example, bits, qat, config.calibration)
    prepared.to(context.device)
    samples = context.data.train.take(config.calibration_samples, context.seed)
    calibrate(prepared, (to_device(images, context.device) for images, _ in samples.batches()))
    uncorrected = prepared if qat else copy.deepcopy(prepared)
    notes, left_out = ({}, []) if qat else _correct(prepared, equalization, samples, config, context)
    exits = artifact.spec.exits
    notes["history"] = _train(prepared, config, context, exits is not None) if qat else []
    for module in (prepared, uncorrected):
        module.cpu()
    sensitivity = _measure_sensitivity(artifact.network, prepared, uncorrected, config, context)
    float_layers: list[str] = []
    if sensitivity is not None:
        kept = [row for row in sensitivity["layers"] if row["kept_float"]]
        float_layers = [row["layer"] for row in kept]
        left_out += [{"layer": row["layer"], "reason": _reason(row, sensitivity, context.task.metric)} for row in kept]
    exclude_layers(prepared, float_layers, uncorrected)
    quantization = {
        "mode": config.mode,
        "target": target,
        "weight_bits": bits,
        "calibration": "moving_average" if qat else config.calibration,
        "calibration_images": len(samples),
        "equalize": config.equalize,
        "rounding": config.rounding,
        "correct_bias": config.correct_bias and not qat,
        "float_layers": float_layers,
    }
    spec = artifact.spec.changed("quantize", **quantization)
    converted = convert(prepared)
    if exits is not None:
        choice, found = calibrate_exits(GraphEnds(converted), exits, context.data.val, torch.device("cpu"))
        notes |= found
        for module in (prepared, converted):
            set_choice(module, choice.temperatures, choice.thresholds)
    return Artifact(converted, spec, left_out, notes, sensitivity, prepared.state_dict())


def _correct(
    prepared: GraphModule,
    equalization: Equalization | None,
    samples: Split,
    config: QuantizeConfig,
    context: Context,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Runs the corrections that are switched on; returns notes on each, and the layers that were skipped."""
    notes: dict[str, Any] = {}
    left_out: list[dict[str, str]] = []
    if equalization is not None:
        if not equalization.pairs:
            log.warning("quantize.equalize: no two layers were found to equalize; the reasons are in stage.json")
        notes["equalization"] = {"pairs": equalization.pairs}
        left_out += equalization.left_out
    steps = config.rounding_steps if config.rounding == "adaround" else 0
    if steps or config.correct_bias:
        images = [to_device(images, context.device) for images, _ in samples.batches()]
        correction = correct(prepared, images, steps, config.correct_bias, context.seed)
        notes["layer_errors"] = correction.errors
        left_out += correction.left_out
    return notes, left_out


def _measure_sensitivity(
    network: nn.Module, prepared: GraphModule, uncorrected: GraphModule, config: QuantizeConfig, context: Context
) -> dict[str, Any] | None:
    """Returns the content of sensitivity.json, measured on validation images; None where no drop is set."""
    if config.max_drop_points is None:
        return None
    val = context.data.val
    float_logits = split_logits(network, val, context.device)
    files = MixedPrecisionFiles(prepared, uncorrected, context.data.shape, val.batches, float_logits, context.task)
    return control_accuracy(
        files, context.task.score(float_logits, val.labels), config.max_drop_points, context.task.metric
    )


def _reason(row: dict[str, Any], sensitivity: dict[str, Any], metric: Metric) -> str:
    drop = sensitivity[f"float_{metric.key}_percent"] - row[f"{metric.key}_percent"]
    return (
        f"kept in float for accuracy: int8 in this layer alone costs {row['kl_nats']:.2g} nats of divergence from the "
        f"float network, in all layers {sensitivity['int8_kl_nats']:.2g}, and {drop:.2f} points of validation "
        f"{metric.label}"
    )


def _train(prepared: GraphModule, config: QuantizeConfig, context: Context, has_exits: bool) -> list[dict[str, Any]]:
    def freeze(epoch: int) -> None:
        if epoch > math.ceil(_FREEZE_BATCH_NORM * config.epochs):
            freeze_batch_norm(prepared)
        if epoch > math.ceil(_FREEZE_RANGES * config.epochs):
            freeze_observers(prepared)

    # bf16 has 8 bits itself: it would blur the grid that is trained.
    context = replace(context, train=replace(context.train, precision="float32"))
    make_loss = ends_loss if has_exits else teacher_loss
    loss = make_loss(teacher_function(context), config.temperature, config.alpha, context.task)
    teacher = require_teacher(context) if config.alpha else None
    settings = TrainSettings("quantize", config.epochs, config.lr, freeze, teacher=teacher, schedule=config.schedule)
    return train(GraphEnds(prepared) if has_exits else prepared, loss, context, settings)
