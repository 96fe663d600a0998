"""VGG for small images, without the published classifier, which has nine tenths of the weights."""

from torch import nn

_KEPT = 3  # pooling layers of the published five


def small_vgg(network: nn.Module) -> None:
    """Removes the last two pooling layers, and ends in global average pooling and one linear layer, in place.

    32 pixels end at 4x4, as in the other networks. Those lose their first two downsampling layers; VGG has so many
    filters after them that an image would cost twelve times as much. The published classifier interpolates to 7x7
    positions and has 124 of VGG-16's 138 million weights. Li et al. 2017 ("Pruning filters", section 4.1) and others
    use one linear layer for CIFAR. The dropout before it stays.
    """
    poolings = [name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]
    for name in poolings[_KEPT:]:
        network.set_submodule(name, nn.Identity())
    first, *_, dropout, last = network.classifier
    channels = first.in_features // (network.avgpool.output_size[0] * network.avgpool.output_size[1])
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(dropout, nn.Linear(channels, last.out_features))
