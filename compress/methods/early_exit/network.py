"""A network with exits: classifiers after inner modules, at which images leave that the exit is sure of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.methods.conditional.selection import INITIAL_THRESHOLD, confident, select
from compress.models.cifar_resnet import BasicBlock
from compress.training.train_outputs import find_logits


@dataclass(frozen=True)
class ExitShape:
    """What an exit is made of, as model.json records it."""

    after: str  # the module of the network whose output it reads
    in_channels: int
    channels: int  # of each of its convolutions
    convolutions: int  # 3x3, with `stride`
    stride: int
    blocks: int  # residual blocks of two more after them


class Exit(nn.Module):
    """Convolutions, residual blocks, global pooling and a linear layer.

    Without the blocks it is the classifier of MSDNet (Huang et al. 2018, section 4). They make up for the few layers
    before an early exit, and on a map that strides have made small they take little time.

    `temperature` divides its logits so that their softmax is calibrated; an image leaves if the probability of its
    likeliest class is at least `threshold`.
    """

    def __init__(self, shape: ExitShape, classes: int):
        super().__init__()
        self.features = nn.Sequential()
        width = shape.in_channels
        for _ in range(shape.convolutions):
            convolution = nn.Conv2d(width, shape.channels, 3, shape.stride, 1, bias=False)
            self.features.extend([convolution, nn.BatchNorm2d(shape.channels), nn.ReLU()])
            width = shape.channels
        self.features.extend([BasicBlock(width, width, 1) for _ in range(shape.blocks)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, classes)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(INITIAL_THRESHOLD))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (N, K) of maps (N, C, H, W)."""
        return self.linear(self.pool(self.features(x)).flatten(1))

    def confident(self, logits: Tensor) -> Tensor:
        """Returns whether an image leaves, (N, 1), from the exit's logits (N, K)."""
        return confident(logits, self.temperature, self.threshold)


class EarlyExitNetwork(nn.Module):
    """In eval mode: images (N, C, H, W) -> logits (N, K) of the first exit that is sure of an image, or of the end.

    In train mode it returns the logits of each exit, in order, and last those of the end. torch computes all of them
    for every image; the exported file skips what an image does not need.
    """

    def __init__(self, network: nn.Module, shapes: Sequence[ExitShape], classes: int):
        super().__init__()
        self.network = network
        self.exits = nn.ModuleList(Exit(shape, classes) for shape in shapes)
        self.shapes = list(shapes)

    def ends(self, images: Tensor) -> list[Tensor]:
        """Returns the logits (N, K) of each exit, in order, and last those of the end."""
        found: list[Tensor] = []

        def leave(exit: nn.Module, module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(exit(output))  # at once: a later layer may change its input in place

        hooks = [
            self.network.get_submodule(shape.after).register_forward_hook(partial(leave, exit))
            for shape, exit in zip(self.shapes, self.exits, strict=True)
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
        return tuple(ends) if self.training else select(ends, self.exits)


def rebuild_early_exit(network: nn.Module, exits: list[dict[str, Any]], classes: int) -> EarlyExitNetwork:
    """Adds exits without trained values; `exits` has the fields of each `ExitShape`."""
    return EarlyExitNetwork(network, [ExitShape(**record) for record in exits], classes).eval()
