"""A user's networks that return something else in train mode, or no logits, or that cannot pass a stage."""

from collections import namedtuple
from collections.abc import Callable

import torch
from torch import Tensor, nn

Outputs = namedtuple("Outputs", ("logits", "aux"))


class Small(nn.Module):
    """A stem, a body and a head; `finish` makes of the three tensors what the forward pass returns."""

    def __init__(self, finish: Callable[..., object] | None = None, channels: int = 8):
        super().__init__()
        self.finish = finish
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> object:
        x = self.stem(x)
        logits = self.head(self.body(x).mean((2, 3)))
        return logits if self.finish is None else self.finish(self, x, logits)


class WithAuxiliaryHead(Small):
    """A second head that runs in training alone; `pack` makes of the two outputs what is returned then."""

    def __init__(self, pack: Callable[[Tensor, Tensor], object]):
        super().__init__()
        self.pack, self.aux = pack, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> object:
        x = self.stem(x)
        logits = self.head(self.body(x).mean((2, 3)))
        return self.pack(logits, self.aux(x.mean((2, 3)))) if self.training else logits


class TwoHeads(Small):
    """Two heads, of which the mean is the answer: in training both are returned."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> object:
        x = self.body(self.stem(x)).mean((2, 3))
        both = self.head(x), self.second(x)
        return both if self.training else sum(both) / 2


def branch(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    if logits.sum() > 0:
        return logits
    return logits + 1


def through_numpy(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    return logits + torch.from_numpy(x.detach().numpy()).mean((1, 2, 3))[:, None]


def one_batch_size(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in logits])


def unknown_operator(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    return logits + torch.linalg.svdvals(x).mean((1, 2))[:, None]


def random_in_eval(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    return logits + torch.rand(3)


def of_the_batch(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    return logits - logits.mean(0)


def fails_in_train_mode(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    if network.training:
        raise RuntimeError("targets are missing")
    return logits


def weight_of_the_image(network: Small, x: Tensor, logits: Tensor) -> Tensor:
    kernel = network.body[0].weight.repeat(4, 1, 1, 1) * x.mean()
    return logits + nn.functional.conv2d(x, kernel, padding=1).mean((1, 2, 3))[:, None]
