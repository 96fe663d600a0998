"""Fits strides and input channels to the images: after a stem for 224 pixels, 32 pixels are too few.

A downsampling layer halves height and width.
"""

import torch
from torch import nn

_REMOVED = 2  # downsampling layers of a published network; without two of the usual five, 32 pixels end at 4x4


def small_stem(network: nn.Module) -> None:
    """Removes the first downsampling, in place: strides of 1, no early pooling, the central 3x3 of a wide filter.

    He et al. 2015 (section 4.2) start in the same way on 32 pixels. Pretrained weights keep their centre.
    """
    downsampling = [(name, module) for name, module in network.named_modules() if is_downsampling(module)]
    for name, module in downsampling[:_REMOVED]:
        if isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.Identity())
        elif module.kernel_size[0] > 3:
            network.set_submodule(name, _central_filters(module))
        else:
            module.stride = (1, 1)


def is_downsampling(module: nn.Module) -> bool:
    """Whether the layer halves height and width."""
    return isinstance(module, (nn.Conv2d, nn.MaxPool2d)) and module.stride in (2, (2, 2))


def set_input_channels(network: nn.Module, channels: int) -> None:
    """Replaces the first convolution by one for `channels`; a single grey channel gets the sum of the colours' weights.

    With the sum a grey image has the same outputs as with three equal channels (timm's `adapt_input_conv`).
    """
    name, old = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels == channels:
        return
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, bias=old.bias is not None
    )
    if getattr(network, "transform_input", False):  # GoogLeNet and Inception then normalise three colours
        network.transform_input = False
    with torch.no_grad():
        if channels == 1:
            new.weight.copy_(old.weight.sum(1, keepdim=True))
        else:
            nn.init.kaiming_normal_(new.weight, mode="fan_out")
        if old.bias is not None:
            new.bias.copy_(old.bias)
    network.set_submodule(name, new)


def _central_filters(old: nn.Conv2d) -> nn.Conv2d:
    """Returns a convolution with the central 3x3 of the filters of `old`, at stride 1."""
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
    start = (old.kernel_size[0] - 3) // 2
    with torch.no_grad():
        new.weight.copy_(old.weight[:, :, start : start + 3, start : start + 3])
        if old.bias is not None:
            new.bias.copy_(old.bias)
    return new
