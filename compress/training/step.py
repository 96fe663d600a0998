"""The gradients of one step: over as many micro-batches as memory needs, and over all processes."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.data.dataset import Batch
from compress.training.context import Context
from compress.training.distributed import ProcessGroup
from compress.training.out_of_memory import StepSnapshot, is_out_of_memory
from compress.training.precision import choose_precision, layers_in
from compress.training.state import TrainState
from compress.utils.errors import UserError

log = logging.getLogger(__name__)

# (network, examples) -> (loss, logits (N, K)); the loss is a mean over the images.
LossFn = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


class Step:
    """Computes the steps of a training; `ddp_network` stands for its network, see `ProcessGroup.wrap_ddp`."""

    def __init__(self, training: TrainState, ddp_network: nn.Module, loss: LossFn, context: Context):
        self._training, self._ddp_network, self._loss, self._context = training, ddp_network, loss, context
        self._precision = choose_precision(context.train.precision, context.device)
        self._snapshot = StepSnapshot(training.network, context.device)

    def gradients(self, batch: Batch, count: int) -> tuple[float, float]:
        """Computes the gradients of the mean loss over a batch of `count` images, of which this process has `batch`.

        Returns what `batch` adds to that mean, and how many of its decisions are right, in images. Where memory runs
        out, this batch and all later ones are split into twice as many micro-batches. Raises UserError where that does
        not help.
        """
        while True:
            self._snapshot.save()
            try:
                return self._accumulate(batch, count)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error, count)
            # Only here is that memory free: the exception held on to all that the step had computed.
            self.undo()

    def undo(self) -> None:
        """Undoes the last step, however far it came."""
        self._training.optimizer.zero_grad(set_to_none=True)
        self._snapshot.restore()

    def _accumulate(self, batch: Batch, count: int) -> tuple[float, float]:
        """Adds up the gradients of the micro-batches."""
        training, ranks, device = self._training, self._context.ranks, self._context.device
        micro_batches = min(training.micro_batches, count // ranks.world)
        total, correct = 0.0, 0.0
        training.optimizer.zero_grad(set_to_none=True)
        for number, rows in enumerate(split_batch(batch, micro_batches), 1):
            part = Batch(*rows)
            with ranks.sync_gradients(self._ddp_network, last=number == micro_batches):
                with layers_in(self._precision, device):
                    value, logits = self._loss(self._ddp_network, part)
                value = value * (len(part.labels) / count)
                (value * ranks.world).backward()  # gradients are averaged over the processes, and values summed
            total += value.item()
            correct += len(part.labels) - self._context.task.mistakes(logits.detach(), part.labels).sum().item()
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
        if training.micro_batches >= count:
            raise UserError(
                f"{received}, with one image at a time",
                "memory for one image",
                "end what else uses it, or lower data.image_size",
            ) from error
        training.micro_batches *= 2
        log.warning(
            "%s: out of memory at step %d: %s",
            training.name,
            training.step + 1,
            micro_batches_text(training.micro_batches),
        )


def agree_on_micro_batches(training: TrainState, loss: LossFn, context: Context) -> None:
    """Finds the number of micro-batches that fit into the memory of every process, by a step of each that is undone.

    A process that ran out of memory later would keep the others waiting in the middle of an exchange.
    """
    network, device = training.network, context.device
    step = Step(training, network, loss, replace(context, ranks=ProcessGroup()))
    count = math.ceil(context.data.train.batch_size / context.ranks.world)
    images = torch.zeros(count, *context.data.shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(count, *context.data.train.labels.shape[1:], dtype=torch.int64, device=device)
    # This is as much memory as the optimizer's state and the exchange of gradients will take.
    spare = [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(3)]
    network.train()
    step.gradients(Batch(images, labels, context.data.train.index[:count]), count)
    step.undo()
    del spare
    (most,) = context.ranks.all_reduce_max(training.micro_batches)
    training.micro_batches = int(most)


def split_batch(batch: Sequence[Tensor], count: int) -> Iterator[tuple[Tensor, ...]]:
    """Splits a batch, tensors of N rows, into `count` micro-batches, or into single images where it has fewer."""
    count = min(count, len(batch[0]))
    return zip(*(rows.tensor_split(count) for rows in batch), strict=True)


def micro_batches_text(count: int) -> str:
    """Returns what so many micro-batches mean, for the log and stage.json."""
    return (
        f"each batch is taken in {count} parts, whose gradients are added up: the same step, but that batch norm sees "
        "a part at a time"
    )
