"""Recognises that memory is too small for a batch, and undoes the step, which is then repeated in micro-batches."""

import torch
from torch import Tensor, nn


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the GPU or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class StepSnapshot:
    """Keeps what a step changes before it is certain to succeed: the network's buffers and the random state.

    Buffers are copied in place. One that a forward pass replaces by a new tensor is computed anew each time.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self._live = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._live]
        self._cuda = device.type == "cuda"
        self._random: list[Tensor] = []

    def save(self) -> None:
        """Keeps the present state for `restore`. This takes less than a thousandth of a step."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)
        self._random = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self._cuda else [])]

    def restore(self) -> None:
        """Restores the state of the last `save`, and returns unused memory to the device."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)
        torch.set_rng_state(self._random[0])
        if self._cuda:
            torch.cuda.set_rng_state(self._random[1])
            torch.cuda.empty_cache()
