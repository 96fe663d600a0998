"""Simulates a calibrated network as it computes once it is converted, and compares its layers with the float ones."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import ObserverBase

from compress.models.graph.aten_patterns import (
    CLAMPS,
    LINEARS,
    SUMS,
    argument,
    is_call,
    layer_name,
    only_user,
    own_parameter,
)
from compress.models.graph.paired_interpreter import PairedInterpreter


class Grid(nn.Module):
    """Rounds to the grid of an observer's range."""

    def __init__(self, observer: ObserverBase):
        super().__init__()
        self.scale, zero_point = observer.calculate_qparams()
        self.zero_point = zero_point.int()
        self.low, self.high = observer.quant_min, observer.quant_max
        self.axis = getattr(observer, "ch_axis", None)  # the axis of the channels, where each has its scale

    def forward(self, x: Tensor) -> Tensor:
        """Rounds a float tensor of any shape."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.low, self.high)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.axis, self.low, self.high)


def simulate(prepared: GraphModule, images: list[Tensor]) -> PairedInterpreter:
    """Pairs the calibrated network, which rounds to its observers' grids, with itself in float as the reference.

    Both are copies, so that weights can change on the way. `images` are chunks (N, C, H, W).
    """
    return PairedInterpreter(
        prepared.graph, _replace(prepared, Grid), _replace(prepared, lambda _: nn.Identity()), images
    )


def _replace(prepared: GraphModule, make: Callable[[ObserverBase], nn.Module]) -> GraphModule:
    module = copy.deepcopy(prepared)
    for name, observer in list(module.named_modules()):
        if isinstance(observer, ObserverBase):
            module.set_submodule(name, make(observer))
    return module


@dataclass
class SimulatedLayer:
    """A convolution or linear layer, the residual sum that reads it, and the activation that it is fused with.

    Values are lists with a tensor for each chunk of images. Channels are the second dimension: (N, C, H, W), or (N, C)
    for a linear layer. `reference=True` selects the float network, `reference=False` the quantized one.
    """

    node: Node
    pair: PairedInterpreter
    addend: Node | None  # the other side of the sum
    clamps: list[Node]

    @classmethod
    def at(cls, node: Node, pair: PairedInterpreter) -> "SimulatedLayer":
        """Returns the layer that `node` calls. A sum counts only where its other side cannot change any more."""
        end, addend = _sum_behind(node)
        if addend is None or not pair.is_final(addend, node):
            end, addend = node, None
        clamps = []
        while is_call(end := only_user(end), CLAMPS):
            clamps.append(end)
        return cls(node, pair, addend, clamps)

    def parameter(self, name: str) -> Tensor:
        """Returns the quantized network's "weight" or "bias". Raises ValueError where the layer has none of its own."""
        source = own_parameter(self.node, name)
        if source is None:
            raise ValueError(f"received {name} of {layer_name(self.node)}; expected a parameter of the layer's own")
        return self.pair.network.get_parameter(source.target)

    def grid(self) -> Grid:
        """Returns the grid of the weight."""
        return self.pair.network.get_submodule(argument(self.node, "weight").target)

    def inputs(self) -> list[Tensor]:
        """Returns what the layer reads in the quantized network."""
        return self._channels_second(self.pair.values(self.node.args[0]))

    def outputs(self, reference: bool) -> list[Tensor]:
        """Returns the layer's own outputs, before the sum and the activation."""
        return self._channels_second(self._values(self.node, reference))

    def sums(self, reference: bool) -> list[Tensor]:
        """Returns the outputs after the sum, where there is one, and before the activation."""
        outputs = self.outputs(reference)
        if self.addend is None:
            return outputs
        others = self._values(self.addend, reference)
        return [x + other for x, other in zip(outputs, self._channels_second(others), strict=True)]

    def activation(self, x: Tensor) -> Tensor:
        """Applies the fused activation to a tensor of any shape; the identity where there is none."""
        for clamp in self.clamps:
            x = clamp.target(x, *clamp.args[1:], **clamp.kwargs)
        return x

    def error(self) -> float:
        """Returns the squared error after the activation, as a share of the squared float output."""
        error = power = 0.0
        for value, reference in zip(self.sums(False), self.sums(True), strict=True):
            value, reference = self.activation(value), self.activation(reference)
            error += (value - reference).double().square().sum().item()
            power += reference.double().square().sum().item()
        return error / max(power, torch.finfo(torch.float32).tiny)

    def change(self, name: str, value: Tensor) -> None:
        """Replaces the quantized network's "weight" or "bias"."""
        self.parameter(name).copy_(value)
        self.pair.invalidate(self.node)

    def _values(self, node: Node, reference: bool) -> list[Tensor]:
        return self.pair.reference_values(node) if reference else self.pair.values(node)

    def _channels_second(self, values: list[Tensor]) -> list[Tensor]:
        return [x.movedim(-1, 1) for x in values] if is_call(self.node, LINEARS) else values


def _sum_behind(node: Node) -> tuple[Node | None, Node | None]:
    """Returns the residual sum that alone reads a layer's output, quantized or not, and the sum's other side."""
    user = only_user(node)
    if user is not None and user.op == "call_module":
        node, user = user, only_user(user)
    if not is_call(user, SUMS) or user.kwargs or not all(isinstance(side, Node) for side in user.args):
        return None, None
    (addend,) = [side for side in user.args if side is not node] or [None]
    return (user, addend) if addend is not None and _shape(addend) == _shape(node) else (None, None)


def _shape(node: Node) -> torch.Size:
    while "val" not in node.meta:  # an observer
        node = node.args[0]
    return node.meta["val"].shape
