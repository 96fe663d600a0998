"""The gradients of one step: in as many parts as memory takes, and over as many processes as there are."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.data.dataset import Examples
from compress.training.context import Context
from compress.training.distributed import ProcessGroup
from compress.training.out_of_memory import Rewind, is_out_of_memory
from compress.training.precision import choose_precision, layers_in
from compress.training.state import TrainState
from compress.utils.errors import UserError

log = logging.getLogger(__name__)

# (network, examples) -> (loss, logits (N, K)); the loss is a mean over the images.
Loss = Callable[[nn.Module, Examples], tuple[Tensor, Tensor]]


class Step:
    """Computes the steps of a training; `joined` stands for its network, as `ProcessGroup.joined` has it."""

    def __init__(self, training: TrainState, joined: nn.Module, loss: Loss, context: Context):
        self._training, self._joined, self._loss, self._context = training, joined, loss, context
        self._precision = choose_precision(context.train.precision, context.device)
        self._rewind = Rewind(training.network, context.device)

    def gradients(self, examples: Examples, count: int) -> tuple[float, float]:
        """Leaves the gradients of the mean loss over a batch of `count`, of which `examples` are this process's part.

        Returns what they add to that mean, and how many of their decisions are right, in images. Where memory runs out,
        the batch is taken in twice as many parts, and so are all that follow. Raises UserError where that is of no use.
        """
        while True:
            self._rewind.mark()
            try:
                return self._in_parts(examples, count)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error, count)
            # Not before: the exception held on to all that the step had computed.
            self.undo()

    def undo(self) -> None:
        """Takes the last step back, as far as it came."""
        self._training.optimizer.zero_grad(set_to_none=True)
        self._rewind.back()

    def _in_parts(self, examples: Examples, count: int) -> tuple[float, float]:
        training, ranks, device = self._training, self._context.ranks, self._context.device
        parts = min(training.parts, count // ranks.world)
        total, correct = 0.0, 0.0
        training.optimizer.zero_grad(set_to_none=True)
        for number, some in enumerate(split_batch(examples, parts), 1):
            some = Examples(*some)
            with ranks.sync_gradients(self._joined, last=number == parts):
                with layers_in(self._precision, device):
                    value, logits = self._loss(self._joined, some)
                value = value * (len(some.labels) / count)
                (value * ranks.world).backward()  # gradients are averaged over the processes, and values summed
            total += value.item()
            correct += len(some.labels) - self._context.task.mistakes(logits.detach(), some.labels).sum().item()
        return total, correct

    def _halve(self, error: Exception, count: int) -> None:
        training, ranks = self._training, self._context.ranks
        received = f"{error} at step {training.step + 1} of {training.steps} of {training.name}"
        if ranks.world > 1:
            raise UserError(
                f"{received}, in process {ranks.rank}, in the middle of what it exchanges with the others",
                "memory for what fitted when the training began",
                "start the run again: it goes on, and tries first what fits; or lower data.batch_size",
            ) from error
        if training.parts >= count:
            raise UserError(
                f"{received}, with one image at a time",
                "memory for one image",
                "end what else uses it, or lower data.image_size",
            ) from error
        training.parts *= 2
        log.warning("%s: out of memory at step %d: %s", training.name, training.step + 1, in_parts(training.parts))


def agree_on_parts(training: TrainState, loss: Loss, context: Context) -> None:
    """Finds in how many parts a batch fits into the memory of every process, by a step of each that leaves no trace.

    One that ran out of memory later would leave the others waiting in the middle of an exchange.
    """
    network, device = training.network, context.device
    step = Step(training, network, loss, replace(context, ranks=ProcessGroup()))
    count = math.ceil(context.data.train.batch_size / context.ranks.world)
    images = torch.zeros(count, *context.data.shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(count, *context.data.train.labels.shape[1:], dtype=torch.int64, device=device)
    # As much as the optimizer's state and the exchange of gradients will take.
    spare = [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(3)]
    network.train()
    step.gradients(Examples(images, labels, context.data.train.index[:count]), count)
    step.undo()
    del spare
    (parts,) = context.ranks.all_reduce_max(training.parts)
    training.parts = int(parts)


def split_batch(batch: Sequence[Tensor], parts: int) -> Iterator[tuple[Tensor, ...]]:
    """A batch, tensors of N rows, in so many parts, or in single images where it has fewer."""
    parts = min(parts, len(batch[0]))
    return zip(*(rows.tensor_split(parts) for rows in batch), strict=True)


def in_parts(parts: int) -> str:
    """What it means to do so, for the log and stage.json."""
    return (
        f"each batch is taken in {parts} parts, whose gradients are added up: the same step, but that batch norm sees "
        "a part at a time"
    )
