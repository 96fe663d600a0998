"""What the teacher says of train images: in its fastest form, and once for all where an image is always the same."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.data.dataset import Batch, Split
from compress.models.graph.fold_batch_norm import fold_batch_norm
from compress.training.context import Context
from compress.utils.tensors import to_device

Answer = Callable[[Batch], Tensor]  # -> logits (N, K), float32, which no gradient goes through

_MOST_BYTES = 2**30  # of logits that are kept


def answers(context: Context) -> Answer:
    """Of the run's teacher, which is neither trained nor changed."""
    teacher, data = fold_batch_norm(context.teacher.network), context.data
    if data.augmentation.changes or 4 * len(data.train) * len(data.classes) > _MOST_BYTES:
        return compute_logits(teacher)
    return cached_logits(teacher, data.train, context.device)


def compute_logits(teacher: nn.Module) -> Answer:
    """Asks `teacher`, in eval mode, each time anew; hooks of it see what it computes."""

    @torch.no_grad()
    def answer(examples: Batch) -> Tensor:
        return teacher(examples.images).float()

    return answer


def cached_logits(teacher: nn.Module, train: Split, device: torch.device) -> Answer:
    """Asks `teacher` of all images of `train` at the first call, in an order that is always the same."""
    rows = torch.full((int(train.index.max()) + 1,), -1)
    rows[train.index] = torch.arange(len(train))
    known: list[Tensor] = []

    @torch.no_grad()
    def answer(examples: Batch) -> Tensor:
        if not known:
            known.append(torch.cat([teacher(to_device(images, device)).float() for images, _ in train.batches()]))
        return known[0][rows[examples.positions].to(device)]

    return answer
