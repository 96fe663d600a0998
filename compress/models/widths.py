"""The widths of a network: read after pruning, and set on a fresh one, so that no pruning code is needed to load it."""

import torch
from torch import nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
RESIZED = (nn.Conv2d, nn.Linear, *_BATCH_NORMS)


def read_widths(network: nn.Module) -> dict[str, list[int]]:
    """`[out, in, groups]` of each convolution, `[out, in]` of each linear layer, `[width]` of each batch norm."""
    widths = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            widths[name] = [module.out_channels, module.in_channels, module.groups]
        elif isinstance(module, nn.Linear):
            widths[name] = [module.out_features, module.in_features]
        elif isinstance(module, _BATCH_NORMS):
            widths[name] = [module.num_features]
    return widths


def set_widths(network: nn.Module, widths: dict[str, list[int]]) -> None:
    """Resizes the layers in place; the weights of a resized layer are zeros until a state is loaded.

    Raises KeyError for a layer that the network lacks.
    """
    layers = dict(network.named_modules())
    for name, width in widths.items():
        module = layers[name]
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels, module.groups = width
            _resize(module, weight=(width[0], width[1] // width[2], *module.kernel_size), bias=(width[0],))
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = width
            _resize(module, weight=tuple(width), bias=(width[0],))
        else:
            module.num_features = width[0]
            _resize(module, **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width[0],)))


def _resize(module: nn.Module, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        old = getattr(module, name)
        if old is None or old.shape == shape:
            continue
        new = torch.zeros(shape, dtype=old.dtype)
        setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
