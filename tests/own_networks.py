"""A user's own networks, as they stand in a module of theirs."""

import torch
from torch import nn


class Plain(nn.Module):
    """Two convolutions and a residual sum."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)  # (N, 8, H, W)
        return self.head(torch.relu(x + self.body(x)).mean((2, 3)))


class Branching(Plain):
    """What no tracer can follow: the path depends on the pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 1 if x.sum() > 0 else x)


def plain(num_classes: int, in_channels: int) -> nn.Module:
    return Plain(num_classes, in_channels)


def branching(num_classes: int, in_channels: int) -> nn.Module:
    return Branching(num_classes, in_channels)


def three_grey_classes() -> nn.Module:
    """Takes no arguments."""
    return Plain(3, 1)


def no_network() -> str:
    return "a network"
