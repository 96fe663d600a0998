"""The processes that train one network together, a device each, as torchrun starts them; one alone costs nothing.

Only the first process reads the settings, decides, writes files and measures. It broadcasts the stages to compute, and
the others compute them from the files that it wrote, up to the end of the training.
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

_TIMEOUT = timedelta(days=30)  # the first process may wait for the cache, export or measure; a dead one is noticed
_WAIT_FOR_TORCHRUN_S = 30.0  # torchrun looks every tenth of a second whether a process died, and then ends the others


class StageDone(Exception):
    """Ends a stage in a process that was needed only for its training."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training. In a single process each call returns its argument and costs nothing."""

    rank: int = 0
    world: int = 1
    fabric: "Fabric | None" = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """Returns the rows (N, ...) of a batch that this process takes; the shards differ by one row at most."""
        return rows if self.world == 1 else rows.tensor_split(self.world)[self.rank]

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Returns the sum of each value over all processes."""
        return self._all_reduce("SUM", values)

    def all_reduce_tensor(self, values: Tensor) -> Tensor:
        """Returns the elementwise sum of `values`, a tensor on the CPU, over all processes."""
        if self.world > 1:
            distributed.all_reduce(values, group=_control_group())
        return values

    def all_reduce_max(self, *values: float) -> list[float]:
        """Returns the largest of each value over all processes."""
        return self._all_reduce("MAX", values)

    def rank_zero_first(self, load: Callable[[], T | None]) -> T | None:
        """Returns what `load` returns. The first process calls it first, the others only where it found something.

        Raises UserError in a process whose `load` finds nothing where the first one's did.
        """
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
        """Yields the network to call in a step, so that all processes end up with the mean of their gradients.

        While the context lasts, batch norm and the ranges of fake quantization see the images of all processes, and the
        processes share the threads of their machine.
        """
        if self.world == 1:
            yield network
            return
        from compress.training.sync_statistics import sync_statistics

        distributed.barrier(group=_control_group())  # what comes before a training may take them differently long
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // local_world_size()))
        try:
            with sync_statistics(network), warnings.catch_warnings():
                # Filters with one input channel cause it: their two orders in memory are the same.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield self._ddp().setup_module(network, move_to_device=False)
        finally:
            torch.set_num_threads(threads)

    def sync_gradients(self, ddp_network: nn.Module, last: bool) -> AbstractContextManager:
        """Returns the context of one micro-batch: gradients are exchanged after the `last` one only."""
        return nullcontext() if self.world == 1 or last else self._ddp().no_backward_sync(ddp_network)

    def broadcast(self, job: Any) -> None:
        """Sends `job` from the first process to the others, which wait for it in `receive_broadcast`."""
        if self.world > 1 and self.is_rank_zero:
            distributed.broadcast_object_list([job], 0, group=_control_group())

    def _ddp(self) -> "Fabric":
        if self.fabric is None:
            raise ValueError(f"received {self.world} processes without a Fabric; expected the one that `join` makes")
        return self.fabric

    def _all_reduce(self, operation: str, values: tuple[float, ...]) -> list[float]:
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total, getattr(distributed.ReduceOp, operation), group=_control_group())
        return total.tolist()


def join(device: torch.device) -> ProcessGroup:
    """Joins the processes that torchrun started, each with its own device of this type.

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

    _control_group()
    machines = world_size() // local_world_size()
    fabric = Fabric(accelerator=device.type, devices=local_world_size(), num_nodes=machines, strategy="ddp")
    fabric.launch()  # takes the GPU of this process, and finds the others joined
    return ProcessGroup(rank(), world_size(), fabric)


@contextmanager
def reporting_errors_to_torchrun() -> Iterator[None]:
    """Waits after a lost connection: torchrun then ends this process and repeats the message of the one that died."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):
            time.sleep(_WAIT_FOR_TORCHRUN_S)
        raise


def receive_broadcast() -> Any:
    """Returns the next job of the first process; None after the last."""
    job = [None]
    with reporting_errors_to_torchrun():
        distributed.broadcast_object_list(job, 0, group=_control_group())
    return job[0]


def shut_down_workers() -> None:
    """Ends the other processes, where there are any: the first one has no more jobs."""
    if world_size() > 1:
        distributed.broadcast_object_list([None], 0, group=_control_group())
        destroy_process_group()


def destroy_process_group() -> None:
    """Leaves the group of processes."""
    distributed.destroy_process_group()


@functools.cache
def _control_group() -> "distributed.ProcessGroup":
    """Returns the group in which processes agree: over gloo, with which a waiting process uses no GPU and no CPU time.

    The first call joins the processes. Gradients go over NCCL where there are GPUs.
    """
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.new_group(backend="gloo", timeout=_TIMEOUT)
