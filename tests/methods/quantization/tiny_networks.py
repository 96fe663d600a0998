"""Small untrained networks, one for each structure that the quantizer has to know."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM = {"eps": 3e-3, "momentum": 0.07}  # neither is torch's default: a rewrite that drops them shows
DROPOUT = 0.3


def conv_bn(inputs: int, outputs: int, kernel: int, activation: nn.Module, **options) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, **BATCH_NORM), activation)


class Residual(nn.Module):
    """CIFAR ResNet's structure: an identity, then an option-A shortcut; odd widths inside, as after pruning."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 3, nn.ReLU(inplace=True))
        self.first = nn.Sequential(conv_bn(8, 5, 3, nn.ReLU(inplace=True)), conv_bn(5, 8, 3, nn.Identity()))
        self.second = nn.Sequential(conv_bn(8, 13, 3, nn.ReLU(), stride=2), conv_bn(13, 12, 3, nn.Identity()))
        self.drop, self.linear = nn.Dropout(DROPOUT), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.first(x) + x)
        x = F.relu(self.second(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.linear(self.drop(x.mean((2, 3))))


class Mobile(nn.Module):
    """MobileNet's: depthwise convolutions, ReLU6, hardswish, SiLU, squeeze-and-excitation, a linear bottleneck."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 3, nn.Hardswish(inplace=True), stride=2)
        self.depthwise = conv_bn(8, 8, 3, nn.ReLU6(inplace=True), groups=8)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Conv2d(3, 8, 1), nn.Hardsigmoid()
        )
        self.project, self.expand = conv_bn(8, 8, 1, nn.Identity()), conv_bn(8, 9, 1, nn.SiLU())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(9, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        return self.classifier(self.expand(self.project(self.squeeze(y) * y) + x))


class Shuffle(nn.Module):
    """ShuffleNet's and SqueezeNet's: concatenation, channel shuffle, chunk, max pooling; logits from a pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = conv_bn(3, 8, 3, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)
        self.branches = nn.ModuleList(conv_bn(4, 4, 3, nn.ReLU(inplace=True)) for _ in range(2))
        self.classifier = nn.Conv2d(8, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat((left, branch(right)), 1)
            n, _, h, w = x.shape
            x = x.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)
        return F.adaptive_avg_pool2d(F.relu(self.classifier(x)), 1).flatten(1)


class Padded(nn.Module):
    """Padding as TensorFlow does it, before an image's, a strided depthwise and an already padded convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 3, padding=1)
        self.left, self.right = nn.Conv2d(12, 8, 2), nn.Conv2d(12, 8, 2)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(F.pad(x, (0, 1, 0, 1))))
        x = F.relu6(self.depthwise(F.pad(x, (0, 1, 1, 2))))
        x = F.pad(F.relu(self.pointwise(F.pad(x, (2, 0, 1, 0)))), (0, 1, 0, 1))  # the last one has two readers
        return self.classifier((self.left(x) + self.right(x)).mean((2, 3)))


def settled(network: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """Seeded weights, batch-norm statistics as if trained on `images` (N, C, H, W), eval mode."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    with torch.no_grad():
        for _ in range(40):
            network.train()(images)
    return network.eval()
