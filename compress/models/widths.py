"""Reads the widths of a pruned network, and sets them on a new one, so that loading it needs no pruning code."""

import torch
from torch import nn

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm


def has_width(module: nn.Module) -> bool:
    """Whether `read_widths` reads this module: a layer whose width determines the shapes of its tensors."""
    tensors = {name for name, _ in module.named_parameters(recurse=False)}
    if isinstance(module, (nn.Conv2d, nn.Linear, _BATCH_NORM, nn.PReLU)):
        return tensors <= {"weight", "bias"}
    if isinstance(module, _INSTANCE_NORM):  # torch-pruning does not prune its statistics
        return tensors <= {"weight", "bias"} and not module.track_running_stats
    return isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and tensors <= {"weight", "bias"}


def read_widths(network: nn.Module) -> dict[str, list[int]]:
    """Returns `[out, in, groups]` of convolutions, `[out, in]` of linear layers, `[width]` of norms and PReLUs."""
    return {name: _width(module) for name, module in network.named_modules() if _is_layer(module) or has_width(module)}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear))


def _width(module: nn.Module) -> list[int]:
    if isinstance(module, nn.Conv2d):
        return [module.out_channels, module.in_channels, module.groups]
    if isinstance(module, nn.Linear):
        return [module.out_features, module.in_features]
    if isinstance(module, nn.LayerNorm):
        return list(module.normalized_shape)
    return [module.num_parameters if isinstance(module, nn.PReLU) else module.num_features]


def set_widths(network: nn.Module, widths: dict[str, list[int]]) -> None:
    """Resizes the layers in place; the weights of a resized layer are zeros until a state is loaded.

    Expanded buffers are copied, so that a state can be loaded into them.
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
            if isinstance(module, nn.LayerNorm):
                module.normalized_shape = tuple(width)
            else:
                setattr(module, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", width[0])
            _resize(module, **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width[0],)))
    for module in layers.values():
        for name, buffer in module.named_buffers(recurse=False):
            if 0 in buffer.stride() and buffer.numel() > 1:
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)


def _resize(module: nn.Module, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        old = getattr(module, name, None)
        if old is None or old.shape == shape:
            continue
        new = torch.zeros(shape, dtype=old.dtype)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
