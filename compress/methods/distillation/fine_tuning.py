"""Trains a network that a stage made smaller, on the labels or on the teacher's outputs."""

from dataclasses import replace

from torch import nn

from compress.config.stage_settings import DistillConfig
from compress.methods.distillation.losses import label_loss, teacher_loss
from compress.methods.distillation.teacher_logits import require_teacher, teacher_function
from compress.training.context import Context
from compress.training.loop import TrainSettings, train


def fine_tune(network: nn.Module, context: Context, settings: TrainSettings, distill: bool) -> list[dict[str, float]]:
    """Trains `network` in place, with `distill` as the stage of that name does by default; returns a row an epoch."""
    if not distill:
        return train(network, label_loss(context.train.label_smoothing, context.task), context, settings)
    teacher, defaults = require_teacher(context), DistillConfig()
    loss = teacher_loss(teacher_function(context), defaults.temperature, defaults.alpha, task=context.task)
    return train(network, loss, context, replace(settings, teacher=teacher))
