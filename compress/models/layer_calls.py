"""Records on what shapes a network calls its convolutions and linear layers: what their cost depends on."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer on one image, without its channels, which pruning changes."""

    kernel: tuple[int, int]  # (1, 1) of linear layers
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: tuple[int, int]
    size: tuple[int, int]  # height and width of the input; (tokens, 1) of linear layers
    positions: int  # of the output
    linear: bool

    def macs(self, out_channels: int, in_channels: int, groups: int) -> int:
        """Returns the multiply-accumulates of the call with so many channels."""
        return self.positions * self.kernel[0] * self.kernel[1] * out_channels * (in_channels // groups)


def layer_calls(network: nn.Module, image: Tensor) -> dict[str, list[LayerCall]]:
    """Returns the calls of each layer, by its name, for an `image` (1, C, H, W); none of a layer that is not called."""
    calls: dict[str, list[LayerCall]] = {
        name: [] for name, module in network.named_modules() if isinstance(module, LAYERS)
    }
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, kwargs, output, name=name: calls[name].append(
                _call(module, inputs[0] if inputs else kwargs["input"], output)
            ),
            with_kwargs=True,
        )
        for name in calls
    ]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return calls


def call_order(network: nn.Module, image: Tensor, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Returns those of `modules` that run for an `image` (1, C, H, W), in the order in which they start."""
    met: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: met.append(module)) for module in modules]
    training = network.training
    with torch.no_grad():
        network.eval()(image)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return met


def _call(layer: nn.Module, x: Tensor, output: Tensor) -> LayerCall:
    if isinstance(layer, nn.Linear):
        tokens = x.numel() // x.shape[-1]
        return LayerCall((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (tokens, 1), tokens, True)
    return LayerCall(
        layer.kernel_size,
        layer.stride,
        _padding(layer),
        layer.dilation,
        tuple(x.shape[2:]),
        output[0, 0].numel(),
        False,
    )


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    if isinstance(layer.padding, str):
        left, right, top, bottom = layer._reversed_padding_repeated_twice  # of "same" and "valid"
        return top, left, bottom, right
    height, width = layer.padding
    return height, width, height, width
