"""Strides and input channels that fit the images: a network made for 224 pixels sees nothing at 32 after its stem."""

import torch
from torch import nn


def first_convolution(network: nn.Module) -> tuple[nn.Module, str, nn.Conv2d]:
    """The parent, the attribute's name and the first convolution itself."""
    name, found = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    return network.get_submodule(parent), leaf, found


def set_input_channels(network: nn.Module, channels: int) -> None:
    """Replaces the first convolution by one for `channels`; one grey channel gets the colours' summed weights.

    The sum keeps what a grey image would give as three equal channels (timm's `adapt_input_conv`).
    """
    parent, leaf, old = first_convolution(network)
    if old.in_channels == channels:
        return
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    with torch.no_grad():
        if channels == 1:
            new.weight.copy_(old.weight.sum(1, keepdim=True))
        else:
            nn.init.kaiming_normal_(new.weight, mode="fan_out")
        if old.bias is not None:
            new.bias.copy_(old.bias)
    setattr(parent, leaf, new)


def small_mobilenet_v2(network: nn.Module) -> None:
    """Strides of 1 in the stem and the first strided block: 32 pixels end at 4x4, not 1x1."""
    _unstride(network.features[0][0])
    _unstride(network.features[2].conv[1][0])


def small_mobilenet_v3(network: nn.Module) -> None:
    """Strides of 1 in the stem and the first block: 32 pixels end at 4x4, not 1x1."""
    _unstride(network.features[0][0])
    _unstride(network.features[1].block[0][0])


def small_resnet(network: nn.Module) -> None:
    """A 3x3 stem of stride 1 without pooling (He et al. 2015, section 4.2): 32 pixels end at 4x4."""
    old = network.conv1
    network.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=False)
    with torch.no_grad():  # the middle of pretrained weights, where there are any, is the best start
        network.conv1.weight.copy_(old.weight[:, :, 2:5, 2:5])
    network.maxpool = nn.Identity()


def _unstride(convolution: nn.Conv2d) -> None:
    convolution.stride = (1, 1)
