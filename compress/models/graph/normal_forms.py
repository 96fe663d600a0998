"""Rewrites a captured graph into the one form of each operation that the other modules read."""

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node

from compress.models.graph.aten_patterns import (
    CONVOLUTIONS,
    LINEARS,
    argument,
    aten,
    is_call,
    is_move,
    replace_call,
    tensor_of,
)

_PADDED_BY_NAME = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
}
_ATTENTION = {aten.scaled_dot_product_attention.default}


def make_functional(module: GraphModule) -> None:
    """Replaces in-place operators by their pure forms, in place; later readers of the tensor read the result."""
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        target = _pure_form(node) if node.op == "call_function" else None
        if target is None:
            continue
        node.target = target
        changed = node.args[0]
        for reader in list(changed.users):
            if order[reader] > order[node]:
                reader.replace_input_with(changed, node)
    module.recompile()


def _pure_form(node: Node) -> Callable | None:
    """Returns the pure form of an operator that overwrites its first operand, such as `relu_`.

    Returns None for any other operator, and for one that writes into a view of a tensor that others read.
    """
    namespace, _, name = getattr(node.target, "_name", "").partition("::")
    written = node.args[0] if node.args else None
    if namespace != "aten" or not name.partition(".")[0].endswith("_") or not isinstance(written, Node):
        return None
    if _is_view_of_read_tensor(written):
        return None
    name = name.partition(".")[0].removesuffix("_")
    return getattr(getattr(aten, name, None), node.target._overloadname, None)


def _is_view_of_read_tensor(node: Node) -> bool:
    """Whether `node` is a view of a tensor that others read too, so that they see what is written into it."""
    while is_move(node) or is_call(node, {aten.select.int}):
        node = node.args[0]
        if len(node.users) > 1:
            return True
    return False


def pad_by_numbers(module: GraphModule) -> None:
    """Writes padding="same" and padding="valid" of convolutions as numbers, in place.

    Where torch's "same" pads one more value after than before, a padding operator adds that one before the layer.
    """
    for node in list(module.graph.nodes):
        if not is_call(node, set(_PADDED_BY_NAME)):
            continue
        x, weight, bias, stride, padding, dilation, groups = (
            argument(node, name) for name in ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        )
        kernel = weight.meta["val"].shape[2:]
        steps = list(dilation) * (len(kernel) // len(dilation))
        total = [step * (size - 1) if padding == "same" else 0 for step, size in zip(steps, kernel, strict=True)]
        behind = [whole % 2 for whole in total]
        with module.graph.inserting_before(node):
            if any(behind):
                rest = [count for more in reversed(behind) for count in (0, more)]
                x = _call(module, aten.constant_pad_nd.default, (x, rest, 0.0), node)
            half = [whole // 2 for whole in total]
            conv = module.graph.call_function(
                _PADDED_BY_NAME[node.target], (x, weight, bias, stride, half, dilation, groups)
            )
        replace_call(module, node, conv)
    module.recompile()


def pool_without_padding(module: GraphModule) -> None:
    """Sets count_include_pad=False on average pooling without padding, in place.

    Where a window of `ceil_mode` crosses the edge, ONNX Runtime would divide by the whole window; torch does not.
    """
    for node in module.graph.nodes:
        if is_call(node, {aten.avg_pool1d.default, aten.avg_pool2d.default}) and not any(argument(node, "padding")):
            names = ("kernel_size", "stride", "padding", "ceil_mode")
            divisor = {"divisor_override": argument(node, "divisor_override")} if "2d" in str(node.target) else {}
            node.args, node.kwargs = (node.args[0], *(argument(node, name) for name in names), False), divisor
    module.recompile()


def products_as_linear(module: GraphModule) -> None:
    """Writes the product of an activation and a matrix of parameters as a linear layer, in place."""
    for node in list(module.graph.nodes):
        if not is_call(node, {aten.matmul.default, aten.mm.default}):
            continue
        x, matrix = node.args
        if matrix.op != "get_attr" or matrix.meta["val"].dim() != 2 or x.meta["val"].dim() < 2:
            continue
        with module.graph.inserting_before(node):
            turned = _call(module, aten.t.default, (matrix,), node)
            linear = module.graph.call_function(aten.linear.default, (x, turned))
        replace_call(module, node, linear)
    module.recompile()


def attention_with_heads(module: GraphModule) -> None:
    """Gives attention four dimensions (N, H, T, C), in place, which the exporter requires.

    (N, T, C) receives a dimension for one head; the first dimensions of (N, W, H, T, C), with windows, become one.
    """
    for node in list(module.graph.nodes):
        if is_call(node, _ATTENTION) and node.meta["val"].dim() > 4:
            _flatten_windows(module, node)
        if not is_call(node, _ATTENTION) or node.meta["val"].dim() != 3:
            continue
        with module.graph.inserting_before(node):
            operands = [
                _call(module, aten.unsqueeze.default, (x, 1), node)
                if isinstance(x, Node) and x.meta["val"].dim() == 3
                else x
                for x in node.args
            ]
            options = dict(node.kwargs)
            attention = _call(module, node.target, tuple(operands), node, options)
            flat = module.graph.call_function(aten.squeeze.dim, (attention, 1))
        replace_call(module, node, flat)
    module.recompile()


def _flatten_windows(module: GraphModule, node: Node) -> None:
    """Writes attention on more than four dimensions with four, unless its mask has more than four too."""
    spare, masks = node.meta["val"].dim() - 4, node.args[3:4]
    if any(isinstance(mask, Node) and mask.meta["val"].dim() > 4 for mask in masks):
        return
    with module.graph.inserting_before(node):
        operands = [_call(module, aten.flatten.using_ints, (x, 0, spare), node) for x in node.args[:3]]
        attention = _call(module, node.target, (*operands, *node.args[3:]), node, dict(node.kwargs))
        shape = [-1, *(int(size) for size in node.meta["val"].shape[1:])]
        whole = module.graph.call_function(aten.view.default, (attention, shape))
    replace_call(module, node, whole)


@torch.no_grad()
def fold_computed_weights(module: GraphModule) -> None:
    """Computes weights and biases that depend on parameters alone once, in place.

    Weight norm, spectral norm, weight standardisation and sums of kernels become parameters with the name of the
    layer. A weight that depends on the image, or on random numbers, does not change.
    """
    values = _Constants(module)
    computed = {
        (node, part): argument(node, part)
        for node in module.graph.nodes
        if is_call(node, CONVOLUTIONS | LINEARS)
        for part in ("weight", "bias")
        if isinstance(argument(node, part), Node) and argument(node, part).op != "get_attr"
    }
    folded = {key: values.value(source) for key, source in computed.items() if values.is_constant(source)}
    names: dict[Node, str] = {}
    for (node, part), value in folded.items():
        source = computed[node, part]
        if source not in names:
            names[source] = f"folded_{len(names)}"
            module.register_parameter(names[source], nn.Parameter(value.detach().clone()))
        with module.graph.inserting_before(node):
            parameter = module.graph.get_attr(names[source])
        parameter.meta = {"val": source.meta["val"]}
        node.replace_input_with(source, parameter)
    owners = {source: _owner(source, module) for source in names}
    parts = {computed[key]: key[1] for key in folded}
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    module.graph.eliminate_dead_code()
    _delete(module, read - {str(node.target) for node in module.graph.nodes if node.op == "get_attr"})
    module.delete_all_unused_submodules()
    for source, name in names.items():
        _rename(module, name, f"{owners[source]}.{parts[source]}")
    module.recompile()


class _Constants:
    """The nodes of a graph that depend on parameters and buffers alone, and their values."""

    def __init__(self, module: GraphModule):
        self._module = module
        self._values: dict[Node, Tensor] = {}
        self._nodes: set[Node] = set()
        for node in module.graph.nodes:
            sources = node.all_input_nodes
            computed = sources and node.op == "call_function" and self._nodes.issuperset(sources)
            is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if node.op == "get_attr" or (computed and not is_random):
                self._nodes.add(node)

    def is_constant(self, node: Node) -> bool:
        return node in self._nodes

    def value(self, node: Node) -> Tensor:
        if node not in self._values:
            if node.op == "get_attr":
                self._values[node] = operator.attrgetter(str(node.target))(self._module)
            else:
                arguments, options = fx.map_arg((node.args, node.kwargs), self.value)
                self._values[node] = node.target(*arguments, **options)
        return self._values[node]


def _owner(source: Node, module: GraphModule) -> str:
    """Returns the name of the layer that owns the largest parameter from which `source` is computed."""
    sizes: dict[str, int] = {}
    waiting, seen = [source], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "get_attr" and isinstance(tensor_of(node, module), Tensor):
            sizes[str(node.target)] = math.prod(tensor_of(node, module).shape)
        waiting += node.all_input_nodes
    name = max(sorted(sizes), key=sizes.__getitem__)
    if ".parametrizations." in name:
        return name.partition(".parametrizations.")[0]
    return name.rpartition(".")[0] or name


def _delete(module: GraphModule, names: set[str]) -> None:
    """Deletes parameters and buffers."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(path), leaf)


def _rename(module: GraphModule, old: str, new: str) -> None:
    """Moves a parameter of the root to the name `new`, unless that name is still read."""
    readers = [node for node in module.graph.nodes if node.op == "get_attr"]
    path, _, leaf = new.rpartition(".")
    if any(node.target in (new, path) or str(node.target).startswith(f"{new}.") for node in readers):
        return
    owner = module
    for step in filter(None, path.split(".")):
        if not isinstance(getattr(owner, step, None), nn.Module):
            owner.add_module(step, nn.Module())
        owner = getattr(owner, step)
    owner.register_parameter(leaf, getattr(module, old))
    delattr(module, old)
    for node in readers:
        if node.target == old:
            node.target = new


def _call(module: GraphModule, target: Callable, arguments: tuple, like: Node, options: dict | None = None) -> Node:
    """Inserts a call at the graph's insertion point, and records the value of its result for shapes."""
    options = options or {}
    node = module.graph.call_function(target, arguments, options)
    values, keywords = fx.map_arg((arguments, options), lambda source: source.meta["val"])
    node.meta = dict(like.meta) | {"val": target(*values, **keywords)}
    return node


def global_pools_as_means(module: GraphModule) -> None:
    """Writes an average pooling to one pixel as a mean over height and width, in place, as torch decomposes it."""
    for node in list(module.graph.nodes):
        if not is_call(node, {aten.adaptive_avg_pool2d.default}) or node.args[1] not in (1, [1], [1, 1]):
            continue
        with module.graph.inserting_before(node):
            mean = module.graph.call_function(aten.mean.dim, (node.args[0], [-1, -2], True))
        replace_call(module, node, mean)
    module.recompile()
