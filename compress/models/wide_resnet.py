"""Wide residual networks for 32-pixel images, as published (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

import torch
from torch import nn


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; a 1x1 shortcut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)  # reads the activated input, as in the authors' code
        return x + self.conv2(self.relu2(self.bn2(self.conv1(y))))  # (N, channels, H / stride, W / stride)


class WideResNet(nn.Module):
    """6n + 4 layers: a stem and three groups of n blocks, `width` times as wide as the 16, 32 and 64 of a ResNet."""

    def __init__(self, depth: int, width: int, in_channels: int, classes: int):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.layer1 = _group(count, 16, 16 * width, 1)
        self.layer2 = _group(count, 16 * width, 32 * width, 2)
        self.layer3 = _group(count, 32 * width, 64 * width, 2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(self.avgpool(self.relu(self.bn(x))).flatten(1))


def _group(count: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(count - 1)))
