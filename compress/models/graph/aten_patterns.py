"""Lists the operators that ONNX Runtime can run in int8; reads and replaces their nodes in an exported graph."""

from collections.abc import Callable
from typing import Any, TypeGuard, overload

import torch
import torch.ao.quantization.fx._decomposed
from torch.fx import Graph, GraphModule, Node

from compress.utils.user_code import innermost_line

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default}
LINEARS = {aten.linear.default}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}

# Activations that the saturation of an unsigned 8-bit value performs at no cost: quantization comes after them.
CLAMPS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}

# Operators that move values without changing them: input and output share scale and zero point.
MOVES = {
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.permute.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.slice.Tensor,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.max_pool2d.default,
    aten.dropout.default,
}
SPLITS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}

SUMS = {aten.add.Tensor}
PRODUCTS = {aten.mul.Tensor}
CONCATENATIONS = {aten.cat.default}
MEANS = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim}
GATES = {aten.sigmoid.default, aten.hardsigmoid.default}

DROPOUT = "dropout_of_"  # the prefix of the name of a dropout module

# The key in a node's meta with which the quantizer marks int8 kernels.
INT8_KERNEL = "int8_kernel"

QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = quantized.dequantize_per_channel.default


def is_call(node: object, targets: set[Callable]) -> TypeGuard[Node]:
    """Whether `node` is a call of one of `targets`."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def only_user(node: Node) -> Node | None:
    """Returns the only node that reads `node`; None where there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


@overload
def tensor_of(node: None, module: GraphModule) -> None: ...
@overload
def tensor_of(node: Node, module: GraphModule) -> torch.Tensor: ...
def tensor_of(node: Node | None, module: GraphModule) -> torch.Tensor | None:
    """Returns the parameter or buffer that a `get_attr` node reads; None for no node."""
    if node is None:
        return None
    value = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def weighted_calls(module: GraphModule) -> list[Node]:
    """Returns the calls of convolutions and linear layers, in the order in which they run."""
    return [node for node in module.graph.nodes if is_call(node, CONVOLUTIONS | LINEARS)]


def weight_name(node: Node) -> str | None:
    """Returns the name of the parameter that a layer reads, directly or through an observer; None where it has none."""
    weight = node.args[1]
    while weight.op == "call_module":
        weight = weight.args[0]
    return weight.target if weight.op == "get_attr" else None


def argument(node: Node, name: str) -> Any:
    """Returns an argument of an aten call by its name in the operator's schema, or its default."""
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, parameter.default_value)
    raise KeyError(f"{node.target} has no argument {name!r}")


def own_parameter(node: Node, name: str) -> Node | None:
    """Returns the `get_attr` node of a layer's "weight" or "bias", also through an observer; None if it is shared."""
    source = argument(node, name)
    while source is not None and source.op == "call_module" and only_user(source):
        source = source.args[0]
    if source is None or source.op != "get_attr" or not only_user(source):
        return None
    return None if any(other is not source and other.target == source.target for other in node.graph.nodes) else source


def layer_name(node: Node) -> str:
    """Returns the network's name of the layer that a convolution or linear call runs."""
    weight = own_parameter(node, "weight")
    return node.name if weight is None else str(weight.target).removesuffix(".weight")


def is_float(node: Node) -> bool:
    """Whether the node's value is one float tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def is_spatial_mean(node: Node) -> bool:
    """Whether the node averages each channel of (N, C, H, W) over a window, as a pooling kernel does."""
    if not is_call(node, MEANS):
        return False
    if node.target is aten.mean.dim:
        return node.args[0].meta["val"].dim() == 4 and sorted(d % 4 for d in node.args[1]) == [2, 3]
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(node.args[1]) == [1, 1]
    return True


def is_move(node: Node) -> bool:
    """Whether the node only moves values, so that they keep their scale and zero point."""
    if is_call(node, {aten.pad.default, aten.constant_pad_nd.default}):
        mode = argument(node, "mode") if node.target is aten.pad.default else "constant"
        return mode == "constant" and not argument(node, "value")
    if node.op == "call_function" and node.target.__name__ == "getitem":
        return is_call(node.args[0], SPLITS)
    return is_call(node, MOVES) or is_dropout(node)


def is_dropout(node: Node) -> bool:
    """Whether the node is a dropout module, which changes values in training only."""
    return node.op == "call_module" and str(node.target).startswith(DROPOUT)


def only_returned(node: Node) -> bool:
    """Whether the node reaches only the network's result, through operators that move and join values."""
    return all(
        user.op == "output" or ((is_move(user) or is_call(user, CONCATENATIONS)) and only_returned(user))
        for user in node.users
    )


def result_values(graph: Graph) -> list[Node]:
    """Returns the values that a graph returns; of each selection by `torch.where`, in order, those it selects from."""
    (result,) = (node for node in graph.nodes if node.op == "output")
    waiting, found = list(result.all_input_nodes), []
    while waiting:
        node = waiting.pop(0)
        if is_call(node, {aten.where.self}):
            waiting = [value for value in node.args[1:] if isinstance(value, Node)] + waiting
        else:
            found.append(node)
    return found


def origin(node: Node) -> Node:
    """Returns the node that computed the values of `node`, before all moves."""
    while is_move(node):
        node = node.args[0]
    return node


def place_of(node: Node) -> str:
    """Returns the module whose forward pass calls `node`, with file and line: "body.0 (net.py, line 12)"."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    module = stack[-1].removeprefix("L['self']").strip(".") if stack else ""
    return f"{module or 'its forward pass'}{line_of(node)}"


def line_of(node: Node) -> str:
    """Returns " (net.py, line 12)" for the innermost line outside the libraries that calls `node`; "" if unknown."""
    line = innermost_line(node.meta.get("stack_trace"))
    return f" ({line})" if line else ""


def replace_call(module: GraphModule, node: Node, replacement: Node) -> None:
    """Replaces `node` by `replacement`, in place, which takes over the shape and the layer that `node` records."""
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    module.graph.erase_node(node)
