"""Trains in bf16 where the device computes it, and in float32 where bf16 kernels would be slower."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def choose_precision(setting: str, device: torch.device) -> str:
    """Returns the precision that `setting`, train.precision, means on `device`: float32 or bf16.

    On the CPU `auto` is float32. Of two CPUs with AVX-512 BF16, one trained up to 2.9 times as fast in bf16 and the
    other no faster, and no CPU flag distinguishes them.
    """
    if setting != "auto":
        return setting
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "float32"


@contextmanager
def layers_in(precision: str, device: torch.device) -> Iterator[None]:
    """Makes forward passes compute their layers in `precision`, float32 or bf16; the weights stay float32."""
    if precision == "float32":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        if device.type == "cuda":
            yield
        else:
            with _DepthwiseInFloat32():
                yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Keeps those depthwise convolutions in float32 for whose gradients oneDNN has no fast bf16 kernel.

    On an AMD EPYC with AVX-512 BF16, forward and backward (torch 2.15, oneDNN): 3x3 at stride 2 takes 10 to 60 times as
    long in bf16, 5x5 two to four times, and on 2x2 pixels five times; 3x3 at stride 1 on more of them half as long.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not F.conv2d or not _is_slow(*args, **kwargs):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return function(args[0].float(), *args[1:], **kwargs)


def _is_slow(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> bool:  # fmt: skip
    depthwise = 1 < groups == input.shape[1]
    plain = set(_pair(stride)) == {1} and set(weight.shape[2:]) == {3} and min(input.shape[2:]) > 2
    return depthwise and not plain


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
