"""VGG for small images: nine tenths of the published weights are a classifier that would have nothing to look at."""

from torch import nn

_KEPT = 3  # of the five poolings


def small_vgg(network: nn.Module) -> None:
    """Leaves out the last two poolings, and puts the mean over all positions and one linear layer behind, in place.

    32 pixels end at 4x4, as in the other networks. There the first two halvings go; here the filters behind them are
    so many that an image would cost twelve times as much. The published classifier spreads what is left over 7x7
    positions and has 124 of VGG-16's 138 million weights. One linear layer is what Li et al. 2017 ("Pruning filters",
    section 4.1) and others take for CIFAR. The dropout in front of it stays.
    """
    poolings = [name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]
    for name in poolings[_KEPT:]:
        network.set_submodule(name, nn.Identity())
    first, *_, dropout, last = network.classifier
    channels = first.in_features // (network.avgpool.output_size[0] * network.avgpool.output_size[1])
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(dropout, nn.Linear(channels, last.out_features))
