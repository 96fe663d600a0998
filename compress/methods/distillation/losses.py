"""The losses that the stages minimise: the task's for a teacher, Hinton's mixture for a student."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from compress.data.dataset import Batch
from compress.tasks import CLASSIFICATION, Task
from compress.training.step import LossFn
from compress.training.train_outputs import TrainOutputs
from compress.utils.errors import UserError

TeacherFn = Callable[[Batch], torch.Tensor]  # -> the teacher's logits (N, K), float32, without gradients


@dataclass(frozen=True)
class MixedBatch:
    """A batch in which each image is made of two; the first has `share` of it, `other_labels` are the second's."""

    batch: Batch
    other_labels: torch.Tensor | None = None  # (N, ...); None: nothing is mixed
    share: float = 1.0

    def over_labels(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns the loss of labels (N, ...), mixed as the images are."""
        if self.other_labels is None:
            return loss(self.batch.labels)
        return self.share * loss(self.batch.labels) + (1 - self.share) * loss(self.other_labels)


def softened(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, weight: float, task: Task
) -> torch.Tensor:
    """Returns `weight` T^2 distance(teacher, student), a mean over the images; both logits (N, K) are softened by T.

    T^2 keeps the size of the gradients as T changes (Hinton et al. 2015, section 2).
    """
    return weight * temperature**2 * task.distance(logits, teacher_logits, temperature).mean()


def distillation(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
    task: Task = CLASSIFICATION,
) -> torch.Tensor:
    """Returns `softened` logits (N, K) with the weight alpha, plus (1 - alpha) times the task's loss of the labels."""
    return softened(logits, teacher_logits, temperature, alpha, task) + (1 - alpha) * task.loss(logits, labels)


def label_loss(
    smoothing: float, task: Task = CLASSIFICATION, mix: Callable[[Batch], MixedBatch] = MixedBatch
) -> LossFn:
    """Returns the loss of a network that learns from the labels of the batch that `mix` makes.

    `smoothing` is the share of each label that is spread over all classes.
    """

    outputs = TrainOutputs(task.output_dims)

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = mix(examples)
        logits = outputs.logits(network, mixed.batch.images)
        return mixed.over_labels(lambda labels: task.loss(logits, labels, smoothing)), logits

    return loss


def relative_error(features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Returns the squared error as a share of the teacher's variance: at 1 a constant would do as well."""
    return F.mse_loss(features, teacher_features) / teacher_features.var().clamp_min(1e-12)


def teacher_loss(teacher_fn: TeacherFn, temperature: float, alpha: float, task: Task = CLASSIFICATION) -> LossFn:
    """Returns the loss `distillation` of a network that learns from the logits which `teacher_fn` computes."""

    def compare(logits: torch.Tensor, teacher_logits: torch.Tensor, mixed: MixedBatch) -> torch.Tensor:
        return distillation(logits, teacher_logits, mixed.batch.labels, temperature, alpha, task)

    return compared_with_teacher(teacher_fn, compare, task)


def compared_with_teacher(
    teacher_fn: TeacherFn,
    compare: Callable[[torch.Tensor, torch.Tensor, MixedBatch], torch.Tensor],
    task: Task,
    mix: Callable[[Batch], MixedBatch] = MixedBatch,
) -> LossFn:
    """Returns the loss of a network by its logits, its teacher's (N, K) each, and the batch that `mix` made of images.

    All is computed in float32, whatever the networks' precision.
    """
    student = TrainOutputs(task.output_dims)

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = mix(examples)
        teacher_logits = teacher_fn(mixed.batch)
        logits = student.logits(network, mixed.batch.images)
        return compare(logits, teacher_logits, mixed), logits

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
