"""Small networks for images (3, 16, 16) whose forward pass is a function, to try one operator or layer each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (3, 16, 16)


class Network(nn.Module):
    """Layers, parameters and buffers by name, and a forward pass that is given the network and the images."""

    def __init__(self, forward: Callable[["Network", Tensor], Any], **parts: nn.Module | Tensor):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    """Padded so that the size stays, unless told otherwise."""
    return nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, **options})


def pooled(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C)."""
    return x.mean((2, 3))


def chain(middle: nn.Module, between: Callable[[Tensor], Tensor] = torch.relu) -> Network:
    """A convolution, `between`, and `middle`, which reads and returns 16 channels."""
    return Network(
        lambda net, x: net.head(pooled(net.last(net.middle(between(net.first(x))).relu()))),
        first=conv(3, 16),
        middle=middle,
        last=conv(16, 16),
        head=nn.Linear(16, 5),
    )
