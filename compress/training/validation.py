"""A network on the validation images, an image each, so that two epochs can be compared on the same images."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.data.dataset import Split
from compress.tasks import CLASSIFICATION
from compress.tasks.base import Task
from compress.training.distributed import ProcessGroup
from compress.utils.tensors import to_device

# Standard errors by which an earlier epoch has to be better. A training has tens of epochs to choose from: at two
# standard errors chance alone would bring one of them there in every other training.
BEYOND_CHANCE = 3.0


@dataclass
class Validation:
    """The figures of each image of a split, in order."""

    losses: Tensor  # (N,), in nats
    mistakes: Tensor  # (N,), share of wrong decisions, of one for an image with one class
    distances: Tensor | None  # (N,), divergence from the teacher, in nats; None without a teacher
    score_percent: float  # the task's metric

    @property
    def loss(self) -> float:
        return self.losses.mean().item()

    @property
    def distance(self) -> float | None:
        return None if self.distances is None else self.distances.mean().item()

    @property
    def scores(self) -> Tensor:
        """What an epoch is judged by (N,), lower is better: distances where there are any, as they vary far less."""
        return self.mistakes if self.distances is None else self.distances


def validate(
    network: nn.Module,
    split: Split,
    device: torch.device,
    teacher_logits: Tensor | None = None,
    after_batch: Callable[[], None] = lambda: None,
    ranks: ProcessGroup | None = None,
    parts: int = 1,
    task: Task = CLASSIFICATION,
) -> Validation:
    """Evaluates `network` on `split` in float32, each batch in `parts` parts; `teacher_logits` is (N, K).

    Several processes share the images; `after_batch` is then not called, as their numbers of batches may differ.
    """
    ranks = ranks or ProcessGroup()
    network.eval()
    found = torch.zeros(3, len(split), dtype=torch.float64)
    outputs: Tensor | None = None
    with torch.no_grad():
        for rows, images, labels in _batches(split, ranks, parts):
            logits, labels = network(to_device(images, device)).float(), labels.to(device)
            found[0, rows] = task.losses(logits, labels).double().cpu()
            found[1, rows] = task.mistakes(logits, labels).double().cpu()
            if teacher_logits is not None:
                found[2, rows] = task.distance(logits, teacher_logits[rows].to(device)).double().cpu()
            outputs = torch.zeros(len(split), logits.shape[1]) if outputs is None else outputs
            outputs[rows] = logits.cpu()
            if ranks.world == 1:
                after_batch()
    losses, mistakes, distances = ranks.summed(found)
    score = task.score(_all_outputs(outputs, len(split), ranks), split.labels)
    return Validation(losses, mistakes, None if teacher_logits is None else distances, score)


@torch.no_grad()
def split_logits(network: nn.Module, split: Split, device: torch.device) -> Tensor:
    """The logits (N, K) of `network` in eval mode on all images of `split`, float32 on the CPU."""
    network.eval()
    return torch.cat([network(to_device(images, device)).float().cpu() for images, _ in split.batches()])


def _all_outputs(outputs: Tensor | None, images: int, ranks: ProcessGroup) -> Tensor:
    """The outputs (N, K) of all processes; this one's are None where it had no image."""
    if ranks.world == 1:
        return outputs
    (width,) = ranks.all_reduce_max(0 if outputs is None else outputs.shape[1])
    return ranks.summed(torch.zeros(images, int(width)) if outputs is None else outputs)


def standard_errors_better(scores: Tensor, others: Tensor) -> float:
    """By how many standard errors the mean of `scores` is below that of `others`, paired on the same images (N,)."""
    differences = (others - scores).double()
    spread = differences.std().item() / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    mean = differences.mean().item()
    return mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0


def _batches(split: Split, ranks: ProcessGroup, parts: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Positions (M,), images and labels of each part of each batch that falls to this process."""
    positions = [ranks.shard(rows) for rows in torch.arange(len(split)).split(split.batch_size)]
    streamed = split.batches(ranks.shard)
    for rows, (images, labels) in zip([rows for rows in positions if len(rows)], streamed, strict=True):
        count = min(parts, len(rows))
        yield from zip(rows.tensor_split(count), images.tensor_split(count), labels.tensor_split(count), strict=True)
