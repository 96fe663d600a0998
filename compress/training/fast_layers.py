"""Changes layers to the form in which they train fastest; outputs and gradients stay the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_CLAMPS = (nn.ReLU6, nn.Hardtanh)


@contextmanager
def optimized_layers(network: nn.Module) -> Iterator[None]:
    """Makes the steps of `network` copy less while the context lasts, and restores its layers at the end.

    torch clones the input of an in-place activation other than ReLU, because its gradient depends on the input. The
    gradient of a clamp can be computed from the output, so clamps really run in place here. The others run faster
    out of place.
    """
    acting = [module for module in network.modules() if getattr(module, "inplace", False)]
    clamps = [module for module in acting if type(module) in _CLAMPS]
    others = [module for module in acting if type(module) is not nn.ReLU and module not in clamps]
    for module in clamps:
        module.forward = partial(_clamp_in_place, low=module.min_val, high=module.max_val)
    for module in others:
        module.inplace = False
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(_lay_out_gradient) for norm in norms[-1:]]
    try:
        yield
    finally:
        for module in clamps:
            del module.forward
        for module in others:
            module.inplace = True
        for hook in hooks:
            hook.remove()


def _clamp_in_place(x: Tensor, low: float, high: float) -> Tensor:
    return _Clamp.apply(x, low, high)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, low: float, high: float) -> Tensor:
        context.mark_dirty(x)
        context.low, context.high = low, high
        y = x.clamp_(low, high)
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = context.saved_tensors
        # The gradient is 0 both at the limits and beyond them, so the output says enough.
        return torch.ops.aten.hardtanh_backward(gradient, y, context.low, context.high), None, None


def _lay_out_gradient(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Puts gradients into channels_last: those of global pooling have no order, and slow batch norm down 20 times."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
