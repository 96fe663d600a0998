"""What a training does where memory is too small for a batch: it takes the step back and does it again in parts."""

import torch
from torch import Tensor, nn


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the GPU or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class Rewind:
    """What a step changes before it is certain to succeed: buffers of the network, and the state of random numbers.

    A buffer that a forward pass replaces, where others are written into, is one that it computes anew each time.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self._live = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._live]
        self._cuda = device.type == "cuda"
        self._random: list[Tensor] = []

    def mark(self) -> None:
        """From here on, `back` leads here. Takes less than a thousandth of a step."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)
        self._random = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self._cuda else [])]

    def back(self) -> None:
        """Puts all of it back, and lets the device have the memory that is free again."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)
        torch.set_rng_state(self._random[0])
        if self._cuda:
            torch.cuda.set_rng_state(self._random[1])
            torch.cuda.empty_cache()
