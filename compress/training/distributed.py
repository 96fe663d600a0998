"""The processes that train one network together, a device each, as torchrun starts them; one alone pays nothing.

The first one leads: it alone reads the settings, decides, writes files and measures. The others follow: they compute
the stages that it tells them to, from the files that it wrote, up to the end of the training.
"""

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from compress.utils.errors import UserError
from compress.utils.torchrun import local_world_size, rank, world_size

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

_PATIENCE = timedelta(days=30)  # for a leader that waits for the cache, exports or measures: it is told when one dies
_LAST_WORD_S = 30.0  # torchrun looks every tenth of a second whether a process died, and then ends the others


class StageDone(Exception):
    """Ends a stage in a process that was needed for its training alone."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training. One alone gets back what it gives, and no call costs it anything."""

    rank: int = 0
    world: int = 1
    fabric: "Fabric | None" = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """The rows (N, ...) of a batch that this process takes; the parts' sizes differ by one at most."""
        return rows if self.world == 1 else rows.tensor_split(self.world)[self.rank]

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Of each value the sum over all processes."""
        return self._reduced("SUM", values)

    def summed(self, values: Tensor) -> Tensor:
        """The elementwise sum of `values` over all processes; a tensor on the CPU."""
        if self.world > 1:
            distributed.all_reduce(values, group=_control())
        return values

    def all_reduce_max(self, *values: float) -> list[float]:
        """Of each value the largest of all processes."""
        return self._reduced("MAX", values)

    def rank_zero_first(self, load: Callable[[], T | None]) -> T | None:
        """What `load` gives: the leader calls it first, and the others only where it found something."""
        found = load() if self.is_rank_zero else None
        (there,) = self.all_reduce_max(found is not None)
        if there and not self.is_rank_zero and (found := load()) is None:
            raise UserError(
                f"process {self.rank} without the saved training that process 0 goes on from",
                "files that all processes read",
                "put hydra.run.dir where each of them finds it under the same name",
            )
        return found

    @contextmanager
    def wrap_ddp(self, network: nn.Module) -> Iterator[nn.Module]:
        """What stands for `network` in a step, so that all processes end up with the mean of their gradients.

        Inside, batch norm and the ranges of fake quantization see the images of all processes, and these share the
        threads of their machine.
        """
        if self.world == 1:
            yield network
            return
        from compress.training.sync_statistics import sync_statistics

        distributed.barrier(group=_control())  # what comes before a training may take them differently long
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // local_world_size()))
        try:
            with sync_statistics(network), warnings.catch_warnings():
                # Of filters with one input channel, whose two orders in memory are the same one.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield self._ddp().setup_module(network, move_to_device=False)
        finally:
            torch.set_num_threads(threads)

    def sync_gradients(self, joined: nn.Module, last: bool) -> AbstractContextManager:
        """Around each part of a batch: the gradients go to the other processes behind the `last` one."""
        return nullcontext() if self.world == 1 or last else self._ddp().no_backward_sync(joined)

    def broadcast(self, job: Any) -> None:
        """Hands `job` from the leader to the others, which wait for it in `receive_broadcast`."""
        if self.world > 1 and self.is_rank_zero:
            distributed.broadcast_object_list([job], 0, group=_control())

    def _ddp(self) -> "Fabric":
        if self.fabric is None:
            raise ValueError(f"received {self.world} processes without a Fabric; expected the one that `join` makes")
        return self.fabric

    def _reduced(self, operation: str, values: tuple[float, ...]) -> list[float]:
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total, getattr(distributed.ReduceOp, operation), group=_control())
        return total.tolist()


def join(device: torch.device) -> ProcessGroup:
    """The processes that torchrun started, each with a device of this type of its own.

    Raises UserError where there are more than devices, and where Lightning Fabric is not installed.
    """
    if world_size() == 1:
        return ProcessGroup()
    if device.type == "cuda" and local_world_size() > torch.cuda.device_count():
        raise UserError(
            f"{local_world_size()} processes on a machine with {torch.cuda.device_count()} GPUs",
            "a GPU for each",
            "lower torchrun's --nproc-per-node, or set device=cpu",
        )
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError as error:
        raise UserError(
            f"{world_size()} processes, and no package lightning_fabric",
            "the extra that several devices need",
            'pip install -e ".[devices]"',
        ) from error

    _control()
    machines = world_size() // local_world_size()
    fabric = Fabric(accelerator=device.type, devices=local_world_size(), num_nodes=machines, strategy="ddp")
    fabric.launch()  # takes the GPU of this process, and finds the others joined
    return ProcessGroup(rank(), world_size(), fabric)


@contextmanager
def reporting_errors_to_torchrun() -> Iterator[None]:
    """A process that another one left says nothing: torchrun ends it, and repeats what the dead one said."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):
            time.sleep(_LAST_WORD_S)
        raise


def receive_broadcast() -> Any:
    """The next job of the leader; None once there is no more."""
    job = [None]
    with reporting_errors_to_torchrun():
        distributed.broadcast_object_list(job, 0, group=_control())
    return job[0]


def shut_down_workers() -> None:
    """Lets the others go, where there are any: the leader has no more jobs."""
    if world_size() > 1:
        distributed.broadcast_object_list([None], 0, group=_control())
        destroy_process_group()


def destroy_process_group() -> None:
    """Parts from the others in order."""
    distributed.destroy_process_group()


@functools.cache
def _control() -> "distributed.ProcessGroup":
    """The group in which processes agree: over the CPU, where one that waits leaves its GPU and its CPU alone.

    Joins the processes the first time, gradients over NCCL where there are GPUs.
    """
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.new_group(backend="gloo", timeout=_PATIENCE)
