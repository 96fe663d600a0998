"""Int8: calibrated after training, or trained with the rounding in the loop; what ships is the exported file."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.config import QuantizeConfig
from compress.context import Context
from compress.losses import teacher_loss
from compress.measure.environment import cpu_flags
from compress.quantization.pt2e import calibrate, convert, freeze_batch_norm, freeze_observers, prepare
from compress.quantization.target import WEIGHT_BITS, choose_target
from compress.train import to_device, train

# Shares of the epochs after which batch norm's statistics, then the activation ranges, stay as they are, so that the
# last epochs train the very function that ships (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
_FREEZE_BATCH_NORM, _FREEZE_RANGES = 0.34, 0.67


def quantize(artifact: Artifact, config: QuantizeConfig, context: Context) -> Artifact:
    """Quantizes the artifact's network; the activation ranges come from `config.calibration_samples` train images."""
    example = torch.zeros(1, *context.data.shape, device=context.device)
    target = choose_target(config.target, cpu_flags())
    prepared = prepare(artifact.network, example, WEIGHT_BITS[target], config.mode == "qat", config.calibration)
    prepared.to(context.device)
    samples = context.data.train.take(config.calibration_samples, context.seed)
    calibrate(prepared, (to_device(images, context.device) for images, _ in samples.batches()))
    history = _train(prepared, config, context) if config.mode == "qat" else []
    quantization = {
        "mode": config.mode,
        "target": target,
        "weight_bits": WEIGHT_BITS[target],
        "calibration": config.calibration,
        "calibration_images": len(samples),
    }
    spec = replace(artifact.spec, quantization=quantization)
    return Artifact(convert(prepared.cpu()), spec, notes={"history": history}, state=prepared.state_dict())


def _train(prepared: GraphModule, config: QuantizeConfig, context: Context) -> list[dict[str, Any]]:
    def freeze(epoch: int) -> None:
        if epoch > math.ceil(_FREEZE_BATCH_NORM * config.epochs):
            freeze_batch_norm(prepared)
        if epoch > math.ceil(_FREEZE_RANGES * config.epochs):
            freeze_observers(prepared)

    loss = teacher_loss(context.teacher.network, config.temperature, config.alpha)
    return train(prepared, loss, context, "quantize", config.epochs, config.lr, before_epoch=freeze)
