"""A network with exits: classifiers after inner modules, at which images leave that the exit is sure of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.training.train_outputs import find_logits

_INITIAL_THRESHOLD = 0.9  # while exits train, so that validation shows a mix of them


@dataclass(frozen=True)
class ExitShape:
    """What an exit is made of, as model.json records it."""

    after: str  # the module of the network whose output it reads
    in_channels: int
    channels: int  # of each of its convolutions
    convolutions: int


class Exit(nn.Module):
    """Convolutions with stride 2, global pooling and a linear layer, as in MSDNet (Huang et al. 2018, section 4).

    `temperature` divides its logits so that their softmax is calibrated; an image leaves if the probability of its
    likeliest class is at least `threshold`.
    """

    def __init__(self, shape: ExitShape, classes: int):
        super().__init__()
        self.features = nn.Sequential()
        width = shape.in_channels
        for _ in range(shape.convolutions):
            convolution = nn.Conv2d(width, shape.channels, 3, 2, 1, bias=False)
            self.features.extend([convolution, nn.BatchNorm2d(shape.channels), nn.ReLU()])
            width = shape.channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, classes)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(_INITIAL_THRESHOLD))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (N, K) of maps (N, C, H, W)."""
        return self.linear(self.pool(self.features(x)).flatten(1))

    def confident(self, logits: Tensor) -> Tensor:
        """Returns whether an image leaves, (N, 1), from the exit's logits (N, K)."""
        return (logits / self.temperature).softmax(1).amax(1, keepdim=True) >= self.threshold


class EarlyExitNetwork(nn.Module):
    """In eval mode: images (N, C, H, W) -> logits (N, K) of the first exit that is sure of an image, or of the end.

    In train mode it returns the logits of each exit, in order, and last those of the end. torch computes all of them
    for every image; the exported file skips what an image does not need.
    """

    def __init__(self, network: nn.Module, shapes: Sequence[ExitShape], classes: int):
        super().__init__()
        self.network = network
        self.exits = nn.ModuleList(Exit(shape, classes) for shape in shapes)
        self._after = [shape.after for shape in shapes]

    def ends(self, images: Tensor) -> list[Tensor]:
        """Returns the logits (N, K) of each exit, in order, and last those of the end."""
        found: list[Tensor] = []

        def leave(exit: nn.Module, module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(exit(output))  # at once: a later layer may change its input in place

        hooks = [
            self.network.get_submodule(name).register_forward_hook(partial(leave, exit))
            for name, exit in zip(self._after, self.exits, strict=True)
        ]
        try:
            end = find_logits(self.network(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [*found, end]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the chosen logits in eval mode, and those of all ends in train mode."""
        ends = self.ends(images)
        if self.training:
            return tuple(ends)
        *early, chosen = ends
        for exit, logits in reversed(list(zip(self.exits, early, strict=True))):
            chosen = torch.where(exit.confident(logits), logits, chosen)
        return chosen


def rebuild_early_exit(network: nn.Module, exits: list[dict[str, Any]], classes: int) -> EarlyExitNetwork:
    """Adds exits without trained values; `exits` has the fields of each `ExitShape`."""
    return EarlyExitNetwork(network, [ExitShape(**record) for record in exits], classes).eval()


def set_choice(network: nn.Module, temperatures: Sequence[float], thresholds: Sequence[float]) -> None:
    """Writes the temperature and the threshold of each exit into a network with exits, or its captured graph."""
    for at, (temperature, threshold) in enumerate(zip(temperatures, thresholds, strict=True)):
        network.get_buffer(f"exits.{at}.temperature").fill_(temperature)
        network.get_buffer(f"exits.{at}.threshold").fill_(threshold)
