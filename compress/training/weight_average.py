"""The exponential moving average of a network's weights over the steps of its training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """Averages the weights and batch norm's running statistics of `network` (Polyak & Juditsky 1992).

    After each step, average = decay * average + (1 - decay) * weights. All other buffers are the network's own, also
    while the average is applied: counters, zero points and constants have no mean, and the range, scale and zero point
    of a fake-quantized activation must stay those of one moment to be one grid (they are a moving average already). The
    scale of a fake-quantized weight is computed from the weight whenever that is used, averaged or not.

    torch's AveragedModel averages all buffers or none, and holds a second network, which would lack the hooks on this
    one.
    """

    def __init__(self, network: nn.Module, decay: float):
        """Starts from the present weights; the average takes the memory of one more copy of them."""
        self._decay = decay
        self._own = _averaged_tensors(network)  # the very tensors of the network
        # The average; while that is applied, the weights that go on training.
        self._kept = {name: value.detach().clone() for name, value in self._own.items()}
        self._is_applied = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step into the average; the first step is 0.

        The decay is min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten.
        """
        average = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
        average(list(self._kept.values()), list(self._own.values()), step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the network while the context lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def copy_to_network(self) -> None:
        """Puts the average into the network, for good."""
        for name, value in self._own.items():
            value.copy_(self._kept[name])

    def tensors(self) -> dict[str, Tensor]:
        """Returns what `load` needs besides the network's own state, also while the average is applied."""
        kept = {f"kept.{name}": value for name, value in self._kept.items()}
        return {"is_applied": torch.tensor(self._is_applied), **kept}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `tensors` returned, once the network has the state that it had then; nothing is applied."""
        for name, value in self._kept.items():
            value.copy_(tensors[f"kept.{name}"])
        if tensors["is_applied"]:
            self._is_applied = True
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._own.items():
            held = value.clone()
            value.copy_(self._kept[name])
            self._kept[name].copy_(held)
        self._is_applied = not self._is_applied


def _averaged_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Returns the floating-point parameters and the running statistics, by name."""
    parameters = [(name, value) for name, value in network.named_parameters() if value.is_floating_point()]
    statistics = [(name, value) for name, value in network.named_buffers() if name.rpartition(".")[2] in _STATISTICS]
    return dict(parameters + statistics)
