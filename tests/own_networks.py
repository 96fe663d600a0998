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


class Inverted(nn.Module):
    """An inverted residual block (Sandler et al. 2018): a wider depthwise convolution of 5x5 inside a branch."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 5, padding=2, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Blocks(nn.Module):
    """A stem, residual blocks that can be left out, and a classifier: what a search can change in little time."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Inverted(8, 16), Inverted(8, 16), Inverted(8, 16))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


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


class GridDetector(nn.Module):
    """A detector as a user may write one: an anchor of 12 pixels every 4 pixels, for images of 32."""

    def __init__(self, classes: int, named: bool = False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.boxes, self.logits = nn.Conv2d(16, 4, 1), nn.Conv2d(16, classes + 1, 1)
        corner = torch.cartesian_prod(torch.arange(0.0, 32, 4), torch.arange(0.0, 32, 4)).flip(1)
        self.anchors = torch.cat([corner - 4, corner + 8], 1)
        self.named = named

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | dict[str, torch.Tensor]:
        features = self.body(images)
        boxes, logits = (layer(features).flatten(2).transpose(1, 2) for layer in (self.boxes, self.logits))
        return {"bbox_regression": boxes, "cls_logits": logits} if self.named else (boxes, logits)


def detector(num_classes: int) -> nn.Module:
    return GridDetector(num_classes)
