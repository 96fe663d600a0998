"""Computes the teacher's logits for train images, and caches them where no augmentation changes the images."""

import torch
from torch import Tensor, nn

from compress.data.dataset import Batch, Split
from compress.methods.distillation.losses import TeacherFn
from compress.models.graph.fold_batch_norm import fold_batch_norm
from compress.training.context import Context
from compress.utils.tensors import to_device

_MAX_BYTES = 2**30  # larger logits are not cached


def teacher_function(context: Context) -> TeacherFn:
    """Returns the function that computes the logits of the run's teacher, with batch norm folded, or caches them."""
    return logits_function(fold_batch_norm(require_teacher(context)), context)


def logits_function(teacher: nn.Module, context: Context, mixed: bool = False) -> TeacherFn:
    """Returns the function that computes the logits of `teacher`, or caches them where images never change.

    `mixed` says that the training mixes them.
    """
    data = context.data
    if mixed or data.augmentation.changes:
        return compute_logits(teacher)
    return cached_logits(teacher, data.train, context.device)


def require_teacher(context: Context) -> nn.Module:
    """Returns the network of the run's teacher. Raises ValueError where there is none yet, in the first stage."""
    if context.teacher is None:
        raise ValueError("received a context without a teacher; expected the artifact that the stage teacher returned")
    return context.teacher.network


def compute_logits(teacher: nn.Module) -> TeacherFn:
    """Returns a function that runs `teacher`, in eval mode, at each call, so that its hooks run too."""

    @torch.no_grad()
    def compute(examples: Batch) -> Tensor:
        return teacher(examples.images).float()

    return compute


def cached_logits(teacher: nn.Module, train: Split, device: torch.device) -> TeacherFn:
    """Returns a function that runs `teacher` on all images of `train` at its first call, always in the same order.

    Where the outputs of all images are too large, it runs `teacher` at each call.
    """
    rows = torch.full((int(train.index.max()) + 1,), -1)
    rows[train.index] = torch.arange(len(train))
    compute = compute_logits(teacher)
    cached: list[Tensor | None] = []

    @torch.no_grad()
    def look_up(examples: Batch) -> Tensor:
        if not cached:
            cached.append(_all_outputs(teacher, train, device))
        outputs = cached[0]
        return compute(examples) if outputs is None else outputs[rows[examples.positions].to(device)]

    return look_up


def _all_outputs(teacher: nn.Module, train: Split, device: torch.device) -> Tensor | None:
    """Returns the outputs of all images (N, ...); None where they are too large, as the first of them shows."""
    parts: list[Tensor] = []
    for images, _ in train.batches():
        parts.append(teacher(to_device(images, device)).float())
        if len(train) * parts[0][0].nbytes > _MAX_BYTES:
            return None
    return torch.cat(parts)
