"""Evens out the ranges of a tensor's channels without changing the network, so that one scale fits them all."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from compress.models.graph.aten_patterns import (
    CONVOLUTIONS,
    LINEARS,
    argument,
    aten,
    is_call,
    is_dropout,
    is_float,
    is_move,
    is_spatial_mean,
    layer_name,
    only_user,
    own_parameter,
    tensor_of,
)

_SHUFFLES = {aten.transpose.int, aten.permute.default}
_CONVERGED = 1e-4  # a round that changes no scale by more than this share is the last
_ROUNDS = 200


@dataclass
class Equalization:
    """The pairs of layers that were equalized, and the layers that were not."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)  # {layer, reason}: its outputs did not change


@torch.no_grad()
def equalize(module: GraphModule) -> Equalization:
    """Rescales, in place, the channels between each layer and the one layer that reads it, until all ranges agree.

    Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1) divides channel i of the first layer by
    s_i and multiplies it by s_i in the second. `module` is a captured graph with batch norm folded. ReLU passes s_i
    on, ReLU6 does not. The paper replaces ReLU6 by ReLU; here such a pair is not equalized, because on a MobileNetV2
    (ImageNet) that alone changed the prediction on 21 % of the images, three times as many as int8 did.
    """
    report, pairs = Equalization(), []
    for node in module.graph.nodes:
        if not is_call(node, CONVOLUTIONS | LINEARS):
            continue
        reader = find_reader(node)
        if isinstance(reader, str):
            report.left_out.append({"layer": layer_name(node), "reason": f"not equalized: {reader}"})
            continue
        pairs.append((node, reader))
        report.pairs.append((layer_name(node), layer_name(reader)))
    for _ in range(_ROUNDS):
        if max((_rescale(first, second, module) for first, second in pairs), default=0.0) < _CONVERGED:
            break
    return report


def find_reader(first: Node) -> Node | str:
    """Returns the layer that alone reads the output of `first`, or why there is none."""
    if not _owns_parameters(first):
        return "its weight is computed or shared"
    node = first
    while (user := only_user(node)) is not None:
        if is_call(user, CONVOLUTIONS | LINEARS):
            if user.args[0] is not node or not _owns_parameters(user):
                return f"the weight of {layer_name(user)}, which reads it, is computed or shared"
            if any(is_call(end, LINEARS) and end.args[0].meta["val"].dim() != 2 for end in (first, user)):
                return f"between it and {layer_name(user)} channels are not the second of two dimensions"
            return user
        if user.op == "output":
            return "it gives the logits"
        if not is_call(user, {aten.relu.default}) and not _keeps_channels(user):
            return f"{_operator(user)} reads it, which does not pass a scale on"
        node = user
    return "it is read in several places"


def _rescale(first: Node, second: Node, module: GraphModule) -> float:
    """Makes the ranges of one pair equal; returns the largest difference of a scale from 1."""
    weight, bias = tensor_of(first.args[1], module), tensor_of(argument(first, "bias"), module)
    incoming = _by_input(tensor_of(second.args[1], module), second)
    ranges = weight.flatten(1).abs().amax(1), incoming.abs().amax((1, 3)).flatten()
    # Equation 11; a channel that is zero on one side has no range to equalize.
    scale = torch.where((ranges[0] > 0) & (ranges[1] > 0), (ranges[0] / ranges[1]).sqrt(), 1.0)
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    weight.div_(scale.view(-1, *[1] * (weight.dim() - 1)))
    if bias is not None:
        bias.div_(scale)
    incoming.mul_(scale.view(incoming.shape[0], 1, -1, 1))
    return float((scale - 1).abs().max())


def _by_input(weight: Tensor, node: Node) -> Tensor:
    """Returns a view of a layer's weight as (groups, C_out / groups, C_in / groups, kernel)."""
    groups = argument(node, "groups") if is_call(node, CONVOLUTIONS) else 1
    return weight.view(groups, len(weight) // groups, weight.shape[1], -1)


def _keeps_channels(node: Node) -> bool:
    """Whether each channel of the result depends on that channel of the input alone, and scales with it."""
    if is_spatial_mean(node) or is_dropout(node):
        return True
    if not is_move(node) or is_call(node, _SHUFFLES) or not is_float(node) or not is_float(node.args[0]):
        return False
    return _channels(node) == _channels(node.args[0])


def _channels(node: Node) -> int:
    """Returns the length of the second dimension, that of the channels in (N, C, H, W) and (N, C); 0 without one."""
    shape = node.meta["val"].shape
    return shape[1] if len(shape) > 1 else 0


def _owns_parameters(node: Node) -> bool:
    bias = argument(node, "bias")
    return own_parameter(node, "weight") is not None and (bias is None or own_parameter(node, "bias") is not None)


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]
