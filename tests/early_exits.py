"""A tiny network with two exits, for tests of what becomes of it."""

import torch
from torch import Tensor, nn

from compress.methods.conditional.selection import set_choice
from compress.methods.conditional.thresholds import confidence
from compress.methods.early_exit.network import EarlyExitNetwork, ExitShape
from compress.models import Architecture, build

SHAPE = (1, 8, 8)
IMAGES: Tensor = torch.randn(48, *SHAPE, generator=torch.Generator().manual_seed(1))
SHAPES = [ExitShape("layer1", 16, 8, 1, 2, 1), ExitShape("layer2", 32, 8, 1, 1, 0)]


def exiting(seed: int = 0) -> EarlyExitNetwork:
    """ResNet-8 with an exit after each of its first groups, in eval mode, with statistics of batch norm as trained."""
    torch.manual_seed(seed)
    network = EarlyExitNetwork(build(Architecture("resnet8", "small", 1, 3)), SHAPES, 3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the batch
    network.train()(IMAGES)
    return network.eval()


def mixed(images: Tensor = IMAGES) -> EarlyExitNetwork:
    """The same with thresholds at which a third of the images leaves at each end."""
    network = exiting()
    temperatures = [0.5, 2.0]
    with torch.no_grad():
        first, second, _ = network.ends(images)
        sure = confidence(first, temperatures[0])
        threshold = sure.quantile(2 / 3).item()
        rest = confidence(second[sure < threshold], temperatures[1])
    set_choice(network, temperatures, [threshold, rest.quantile(0.5).item()])
    return network
