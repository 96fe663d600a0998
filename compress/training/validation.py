"""Evaluates a network on each validation image, so that two epochs can be compared in pairs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.data.dataset import Split
from compress.tasks import CLASSIFICATION
from compress.tasks.base import Task
from compress.training.distributed import ProcessGroup

# Standard errors by which an earlier epoch has to be better. A training has tens of epochs to choose from: with two
# standard errors, one of them would be better by chance in every other training.
BEYOND_CHANCE = 3.0


@dataclass
class Validation:
    """The figures of each image of a split, in order."""

    losses: Tensor  # (N,), in nats
    mistakes: Tensor  # (N,), share of wrong decisions; 0 or 1 for an image with one class
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
        """Returns what judges an epoch (N,), lower is better: distances, which vary far less, or else mistakes."""
        return self.mistakes if self.distances is None else self.distances


def validate(
    network: nn.Module,
    split: Split,
    device: torch.device,
    teacher_logits: Tensor | None = None,
    after_batch: Callable[[], None] = lambda: None,
    ranks: ProcessGroup | None = None,
    micro_batches: int = 1,
    task: Task = CLASSIFICATION,
) -> Validation:
    """Evaluates `network` on `split` in float32, each batch in `micro_batches` parts; `teacher_logits` is (N, ...).

    Several processes share the images; `after_batch` is then not called, because their numbers of batches may differ.
    """
    ranks = ranks or ProcessGroup()
    network.eval()
    found = torch.zeros(3, len(split), dtype=torch.float64)
    outputs: Tensor | None = None
    with torch.no_grad():
        for rows, images, labels in _batches(split, ranks, micro_batches, device):
            logits, labels = network(images).float(), labels.to(device)
            found[0, rows] = task.losses(logits, labels).double().cpu()
            found[1, rows] = task.mistakes(logits, labels).double().cpu()
            if teacher_logits is not None:
                found[2, rows] = task.distance(logits, teacher_logits[rows].to(device)).double().cpu()
            outputs = torch.zeros(len(split), *logits.shape[1:]) if outputs is None else outputs
            outputs[rows] = logits.cpu()
            if ranks.world == 1:
                after_batch()
    losses, mistakes, distances = ranks.all_reduce_tensor(found)
    score = task.score(_all_outputs(outputs, len(split), task.output_dims, ranks), split.labels)
    return Validation(losses, mistakes, None if teacher_logits is None else distances, score)


@torch.no_grad()
def split_logits(network: nn.Module, split: Split, device: torch.device) -> Tensor:
    """Returns the outputs (N, ...) of `network` in eval mode on all images of `split`, float32 on the CPU."""
    network.eval()
    return torch.cat([network(images).float().cpu() for images, _ in split.batches(device=device)])


def _all_outputs(outputs: Tensor | None, images: int, dims: int, ranks: ProcessGroup) -> Tensor:
    """Returns the outputs (N, ...) of all processes; `outputs` is None where this one had no image."""
    if ranks.world == 1:
        return outputs
    sizes = ranks.all_reduce_max(*([0] * (dims - 1) if outputs is None else outputs.shape[1:]))
    return ranks.all_reduce_tensor(torch.zeros(images, *map(int, sizes)) if outputs is None else outputs)


def standard_errors_better(scores: Tensor, others: Tensor) -> float:
    """Returns by how many standard errors the mean of `scores` is below that of `others`, on the same images (N,)."""
    differences = (others - scores).double()
    spread = differences.std().item() / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    mean = differences.mean().item()
    return mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0


def _batches(
    split: Split, ranks: ProcessGroup, micro_batches: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the positions (M,), images and labels of each micro-batch of this process."""
    positions = [ranks.shard(rows) for rows in torch.arange(len(split)).split(split.batch_size)]
    streamed = split.batches(ranks.shard, device)
    for rows, (images, labels) in zip([rows for rows in positions if len(rows)], streamed, strict=True):
        count = min(micro_batches, len(rows))
        yield from zip(rows.tensor_split(count), images.tensor_split(count), labels.tensor_split(count), strict=True)
