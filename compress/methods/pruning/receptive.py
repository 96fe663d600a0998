"""Reads which inputs a convolution or a linear layer combines at each place of its output, with its own padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def channel_dim(layer: nn.Module) -> int:
    """Returns the dimension of the channels in the inputs and outputs of `layer`."""
    return -1 if isinstance(layer, nn.Linear) else 1


def pixels(layer: nn.Module, x: Tensor) -> Tensor:
    """Reshapes (N, C, H, W) of a convolution or a norm, or (N, ..., C) of a linear layer, to (places, C)."""
    return x.movedim(channel_dim(layer), -1).flatten(0, -2)


def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns what each output place reads: (N H' W', C_in k k) of a convolution, (places, C_in) of a linear layer."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    with _FirstConvolution() as call:
        layer(x[:0] if _pads_by_itself(layer) else x)
    source = x if _pads_by_itself(layer) else call.source
    (top, bottom), (left, right) = _padding(layer, call.padding)
    padded = F.pad(source, (left, right, top, bottom))
    columns = F.unfold(padded, layer.kernel_size, call.dilation, 0, call.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _pads_by_itself(layer: nn.Conv2d) -> bool:
    """Whether the layer hands its input to the convolution as it is: a call with no images then suffices."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros"


def computes_weight(layer: nn.Module) -> bool:
    """Whether `layer` computes its weight anew at each call, so that it would not use a weight written into it."""
    if not isinstance(layer.weight, nn.Parameter) or "weight" in getattr(layer, "parametrizations", {}):
        return True
    if type(layer) in (nn.Conv2d, nn.Linear):
        return False
    return not _uses_own_weight(layer)


def _uses_own_weight(layer: nn.Module) -> bool:
    """Whether a call of a user's or a library's layer returns the product with its own weight, and nothing else."""
    shape = (1, layer.in_features) if isinstance(layer, nn.Linear) else (1, layer.in_channels, 32, 32)
    with torch.no_grad(), _FirstConvolution() as call:
        value = layer(layer.weight.new_zeros(shape))
    return call.value is value and call.weight is layer.weight


class _FirstConvolution(TorchFunctionMode):
    """Records how a layer calls conv2d or linear, after whatever it does to its input."""

    def __init__(self):
        super().__init__()
        self.source = self.weight = self.value = None
        self.stride, self.padding, self.dilation = 1, 0, 1

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = function(*args, **kwargs)
        if getattr(function, "__name__", "") in ("conv2d", "linear") and self.value is None:
            arguments = (
                dict(zip(("input", "weight", "bias", "stride", "padding", "dilation"), args, strict=False)) | kwargs
            )
            self.source, self.weight, self.value = arguments["input"], arguments["weight"], value
            self.stride, self.padding, self.dilation = (
                arguments.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
            )
        return value


def _padding(layer: nn.Conv2d, padding: str | int | tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns the zeros before and after, for each of the two dimensions; `same` puts the odd one after."""
    if padding == "same":
        spans = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if isinstance(padding, str):
        raise ValueError(f"received padding={padding!r}; expected 'same', 'valid' or numbers")
    sizes = (padding, padding) if isinstance(padding, int) else padding if len(padding) == 2 else padding * 2
    return [(size, size) for size in sizes]
