"""The losses that the stages minimise: the task's for a teacher, Hinton's mixture for a student."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from compress.data.dataset import Batch
from compress.tasks import CLASSIFICATION, Task
from compress.training.step import LossFn
from compress.training.train_outputs import TrainOutputs
from compress.utils.errors import UserError

TeacherFn = Callable[[Batch], torch.Tensor]  # -> the teacher's logits (N, K), float32, without gradients


def distillation(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
    task: Task = CLASSIFICATION,
) -> torch.Tensor:
    """Returns alpha T^2 distance(teacher, student), both softened by T, plus (1 - alpha) times the task's loss.

    Logits are (N, K). T^2 keeps the size of the gradients as T changes (Hinton et al. 2015, section 2).
    """
    soft = task.distance(logits, teacher_logits, temperature).mean()
    return alpha * temperature**2 * soft + (1 - alpha) * task.loss(logits, labels)


def label_loss(smoothing: float, task: Task = CLASSIFICATION) -> LossFn:
    """Returns the loss of a network that learns from labels alone; `smoothing` is the share spread over all classes."""

    outputs = TrainOutputs(task.output_dims)

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = outputs.logits(network, examples.images)
        return task.loss(logits, examples.labels, smoothing), logits

    return loss


def relative_error(features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Returns the squared error as a share of the teacher's variance: at 1 a constant would do as well."""
    return F.mse_loss(features, teacher_features) / teacher_features.var().clamp_min(1e-12)


def teacher_loss(teacher_fn: TeacherFn, temperature: float, alpha: float, task: Task = CLASSIFICATION) -> LossFn:
    """Returns the loss of a network that learns from a teacher's logits (N, K), which `teacher_fn` computes.

    All is computed in float32, whatever the networks' precision.
    """
    student = TrainOutputs(task.output_dims)

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        teacher_logits = teacher_fn(examples)
        logits = student.logits(network, examples.images)
        return distillation(logits, teacher_logits, examples.labels, temperature, alpha, task), logits

    return loss


@contextmanager
def record_outputs(network: nn.Module, layers: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a dict of the named modules' outputs in the last forward pass. Raises UserError for an unknown name."""
    modules, outputs = dict(network.named_modules()), {}
    unknown = [layer for layer in layers if layer not in modules]
    if unknown:
        known = ", ".join(name for name in modules if name and "." not in name)
        raise UserError(
            f"distill.hint_layers with {unknown[0]}", f"modules of the network: {known} or inside", "mend it"
        )
    hooks = [
        modules[layer].register_forward_hook(
            lambda module, inputs, output, layer=layer: outputs.update({layer: output})
        )
        for layer in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
