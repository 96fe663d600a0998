"""A calibrated network computed as it will be once it is converted, and one layer of it seen from all sides."""

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
    """Rounds to the grid that an observer found."""

    def __init__(self, observer: ObserverBase):
        super().__init__()
        self.scale, zero_point = observer.calculate_qparams()
        self.zero_point = zero_point.int()
        self.low, self.high = observer.quant_min, observer.quant_max
        self.axis = getattr(observer, "ch_axis", None)  # of the channels, where each has its scale

    def forward(self, x: Tensor) -> Tensor:
        """Any float tensor to one of the same shape."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.low, self.high)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.axis, self.low, self.high)


def simulate(prepared: GraphModule, images: list[Tensor]) -> PairedInterpreter:
    """The calibrated network, rounding as its observers tell, side by side with itself in float.

    The first holds copies of the weights, to be changed on the way. `images` are chunks (N, C, H, W).
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
class Layer:
    """A convolution or linear layer, the residual sum that it goes into, and the activation that it is fused with.

    Tensors are lists, one a chunk of images, with channels second: (N, C, H, W), or (N, C) of a linear layer.
    """

    node: Node
    pair: PairedInterpreter
    addend: Node | None  # the other side of the sum
    clamps: list[Node]

    @classmethod
    def at(cls, node: Node, pair: PairedInterpreter) -> "Layer":
        """The layer that `node` calls. A sum counts only where its other side cannot change any more."""
        end, addend = _sum_behind(node)
        if addend is None or not pair.is_settled(addend, node):
            end, addend = node, None
        clamps = []
        while is_call(end := only_user(end), CLAMPS):
            clamps.append(end)
        return cls(node, pair, addend, clamps)

    def parameter(self, name: str) -> Tensor:
        """The quantized network's "weight" or "bias"."""
        source = own_parameter(self.node, name)
        if source is None:
            raise ValueError(f"received {name} of {layer_name(self.node)}; expected a parameter of the layer's own")
        return self.pair.network.get_parameter(source.target)

    def grid(self) -> Grid:
        """That of the weight."""
        return self.pair.network.get_submodule(argument(self.node, "weight").target)

    def inputs(self) -> list[Tensor]:
        """The quantized network's."""
        return self._channels_second(self.pair.new(self.node.args[0]))

    def outputs(self, old: bool) -> list[Tensor]:
        """In front of sum and activation: the float network's where `old`, else the quantized one's."""
        return self._channels_second(self.pair.old(self.node) if old else self.pair.new(self.node))

    def sums(self, old: bool) -> list[Tensor]:
        """Behind the sum, where there is one, and in front of the activation."""
        outputs = self.outputs(old)
        if self.addend is None:
            return outputs
        others = self.pair.old(self.addend) if old else self.pair.new(self.addend)
        return [x + other for x, other in zip(outputs, self._channels_second(others), strict=True)]

    def activation(self, x: Tensor) -> Tensor:
        """Any float tensor to one of the same shape; the identity where none follows."""
        for clamp in self.clamps:
            x = clamp.target(x, *clamp.args[1:], **clamp.kwargs)
        return x

    def error(self) -> float:
        """Squared error behind the activation, as a share of the squared float output."""
        error = power = 0.0
        for new, old in zip(self.sums(False), self.sums(True), strict=True):
            new, old = self.activation(new), self.activation(old)
            error += (new - old).double().square().sum().item()
            power += old.double().square().sum().item()
        return error / max(power, torch.finfo(torch.float32).tiny)

    def change(self, name: str, value: Tensor) -> None:
        """Gives the quantized network another "weight" or "bias"."""
        self.parameter(name).copy_(value)
        self.pair.forget(self.node)

    def _channels_second(self, values: list[Tensor]) -> list[Tensor]:
        return [x.movedim(-1, 1) for x in values] if is_call(self.node, LINEARS) else values


def _sum_behind(node: Node) -> tuple[Node | None, Node | None]:
    """The residual sum that alone reads a layer's output, at once or quantized, and the sum's other side."""
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
