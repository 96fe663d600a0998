"""What a convolution or a linear layer sees at each place of its output, as it computes it: with its own padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def channel_dim(layer: nn.Module) -> int:
    """The dimension of the channels of what `layer` reads and returns."""
    return -1 if isinstance(layer, nn.Linear) else 1


def pixels(layer: nn.Module, x: Tensor) -> Tensor:
    """(N, C, H, W) of a convolution or a norm, and (N, ..., C) of a linear layer, as (places, C)."""
    return x.movedim(channel_dim(layer), -1).flatten(0, -2)


def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What each place of the output sees: (N H' W', C_in k k) of a convolution, (places, C_in) of a linear layer."""
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
    """Whether the convolution gets what the layer reads: then one of no images says how it is called."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros"


def computes_weight(layer: nn.Module) -> bool:
    """Whether `layer` computes its weight anew at each call: another that is written into it is not what it uses."""
    if not isinstance(layer.weight, nn.Parameter) or "weight" in getattr(layer, "parametrizations", {}):
        return True
    if type(layer) in (nn.Conv2d, nn.Linear):
        return False
    return not _uses_own_weight(layer)


def _uses_own_weight(layer: nn.Module) -> bool:
    """Whether one call of a layer of the user's or of a library's returns what its weight gives, and nothing else."""
    shape = (1, layer.in_features) if isinstance(layer, nn.Linear) else (1, layer.in_channels, 32, 32)
    with torch.no_grad(), _FirstConvolution() as call:
        value = layer(layer.weight.new_zeros(shape))
    return call.value is value and call.weight is layer.weight


class _FirstConvolution(TorchFunctionMode):
    """Notes how a layer calls conv2d or linear, behind whatever it does to its input."""

    def __init__(self):
        super().__init__()
        self.source = self.weight = self.value = None
        self.stride, self.padding, self.dilation = 1, 0, 1

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = function(*args, **kwargs)
        if getattr(function, "__name__", "") in ("conv2d", "linear") and self.value is None:
            given = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation"), args, strict=False)) | kwargs
            self.source, self.weight, self.value = given["input"], given["weight"], value
            self.stride, self.padding, self.dilation = (
                given.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
            )
        return value


def _padding(layer: nn.Conv2d, padding: str | int | tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros in front and behind, for each of the two dimensions; `same` has the odd one behind."""
    if padding == "same":
        spans = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if isinstance(padding, str):
        raise ValueError(f"received padding={padding!r}; expected 'same', 'valid' or numbers")
    sizes = (padding, padding) if isinstance(padding, int) else padding if len(padding) == 2 else padding * 2
    return [(size, size) for size in sizes]
