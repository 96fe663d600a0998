"""A short example: a small network of depthwise-separable convolutions, the idea of MobileNet."""

import torch
from torch import nn


class Separable(nn.Module):
    """A 3x3 filter for each channel, then a 1x1 convolution that mixes the channels (Howard et al. 2017).

    Both together need about a ninth of the multiplications of a full 3x3 convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.depthwise(x)))  # (N, in_channels, H / stride, W / stride)
        return self.relu2(self.bn2(self.pointwise(x)))  # (N, channels, H / stride, W / stride)


class Depthwise(nn.Module):
    """A stem, six separable blocks, the mean over all positions, and a linear layer."""

    def __init__(self, in_channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            Separable(16, 32, 1),
            Separable(32, 64, 2),
            Separable(64, 128, 2),
            Separable(128, 128, 1),
            Separable(128, 256, 2),
            Separable(256, 256, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(x)))  # (N, 16, H / 2, W / 2)
        x = self.blocks(x)  # (N, 256, H / 32, W / 32); with the small stem H / 8
        return self.linear(self.pool(x).flatten(1))  # (N, classes)
