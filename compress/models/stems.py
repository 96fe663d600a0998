"""Strides and input channels that fit the images: a network made for 224 pixels sees nothing at 32 after its stem."""

import torch
from torch import nn

_LEFT_OUT = 2  # of a published network's halvings; the usual five then leave 4x4 of 32 pixels


def small_stem(network: nn.Module) -> None:
    """Leaves out the first halvings of the image: strides of 1, no early pooling, a wide filter's middle 3x3.

    As He et al. 2015 (section 4.2) start on 32 pixels. The middle of pretrained weights is their best start.
    """
    halvings = [(name, module) for name, module in network.named_modules() if is_downsampling(module)]
    for name, module in halvings[:_LEFT_OUT]:
        if isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.Identity())
        elif module.kernel_size[0] > 3:
            network.set_submodule(name, _middle(module))
        else:
            module.stride = (1, 1)


def is_downsampling(module: nn.Module) -> bool:
    """Whether rows and columns halve there."""
    return isinstance(module, (nn.Conv2d, nn.MaxPool2d)) and module.stride in (2, (2, 2))


def set_input_channels(network: nn.Module, channels: int) -> None:
    """Replaces the first convolution by one for `channels`; one grey channel gets the colours' summed weights.

    The sum keeps what a grey image would give as three equal channels (timm's `adapt_input_conv`).
    """
    name, old = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels == channels:
        return
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, bias=old.bias is not None
    )
    if getattr(network, "transform_input", False):  # GoogLeNet's and Inception's: it takes the three colours apart
        network.transform_input = False
    with torch.no_grad():
        if channels == 1:
            new.weight.copy_(old.weight.sum(1, keepdim=True))
        else:
            nn.init.kaiming_normal_(new.weight, mode="fan_out")
        if old.bias is not None:
            new.bias.copy_(old.bias)
    network.set_submodule(name, new)


def _middle(old: nn.Conv2d) -> nn.Conv2d:
    """The middle 3x3 of its filters, at stride 1."""
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
    start = (old.kernel_size[0] - 3) // 2
    with torch.no_grad():
        new.weight.copy_(old.weight[:, :, start : start + 3, start : start + 3])
        if old.bias is not None:
            new.bias.copy_(old.bias)
    return new
