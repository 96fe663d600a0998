"""Names the nodes of an exported ONNX graph as the network's author names the layers that they belong to."""

import ast
from collections.abc import Collection

import onnx_ir as ir

from compress.export.onnx_graph import producer, required_input

LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_GRID = ("QuantizeLinear", "DequantizeLinear")
_BLOCKED = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "BatchNormalization")
_FUSED = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu")  # the runtime fuses them into the layer before
_SCOPES = (
    "pkg.torch.onnx.name_scopes"  # the exporter's key: the modules from the network down to the call, then the call
)


def name_by_layer(model: ir.Model) -> None:
    """Names each node after the network's module that calls it, in place, before any rewrite.

    A layer with weights has the layer's own name, `features.3.conv.1`; any other node has its module's, a slash and its
    operator, `features.3/Add`, or `/Add` where the network's own forward pass calls it. A module's name has no slash,
    so no such node is taken for a layer. A profile, a viewer and the runtime's messages then name the author's layers.
    """
    layers: set[str] = set()
    for node in model.graph:
        layer = _layer(node)
        if layer and layer not in layers:  # a layer that is called twice, or that shares its weight, has one name only
            layers.add(layer)
            node.name = layer
        elif node.op_type == "DequantizeLinear" and required_input(node, 0).is_initializer():
            node.name = required_input(node, 0).name
        else:
            node.name = f"{_place(node)}/{node.op_type}"


def name_beside(node: ir.Node, operator: str) -> str:
    """Returns the name of a node that computes `operator` for the same module as `node`."""
    return f"{_module(node.name or '')}/{operator}"


def name_uniquely(model: ir.Model) -> None:
    """Gives each node and each value a unique name, in place, without which the runtime refuses a file.

    Where the runtime names its replacement of a node after the node's output, the output gets the node's name.
    """
    nodes: set[str] = set()
    values = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    results = {id(value) for value in model.graph.outputs}
    values |= {value.name for value in model.graph.outputs}
    for node in model.graph:
        node.name = name = _unused(node.name or node.op_type, nodes)
        nodes.add(name)
        for value in node.outputs:
            if id(value) not in results and value.name != "":  # "" is an output that is left out
                value.name = _unused(_value_name(node, name, value), values)
                values.add(value.name)


def _value_name(node: ir.Node, name: str, value: ir.Value) -> str:
    """Returns the value's own name, or one from the node's `name` where the runtime calls a faster node after it."""
    before = required_input(node, 0).producer() if node.op_type in _FUSED else None
    if before is not None and _is_blocked(before) and len(before.outputs[0].uses()) == 1:
        return f"{before.name}/{node.op_type}"
    return name if _is_blocked(node) else value.name or f"{name}_output"


def _is_blocked(node: ir.Node) -> bool:
    """Returns whether the runtime may replace a float node by one that works on blocks of channels (NCHWc)."""
    if node.op_type not in _BLOCKED:
        return False
    return producer(node.inputs[1 if node.op_type in LAYERS else 0], "DequantizeLinear") is None


def _unused(name: str, used: Collection[str | None]) -> str:
    return (
        name if name not in used else next(f"{name}_{n}" for n in range(1, len(used) + 2) if f"{name}_{n}" not in used)
    )


def _layer(node: ir.Node) -> str:
    """Returns the module whose weight a convolution or matrix product reads; "" where it reads no parameter."""
    if node.op_type not in LAYERS or len(node.inputs) < 2:
        return ""
    weight = _stored(node.inputs[1])
    name = (weight.name or "") if weight is not None else ""
    return name.removesuffix(".weight") if name.endswith(".weight") else ""


def _stored(value: ir.Value | None) -> ir.Value | None:
    """Returns the initializer that a value is, directly or dequantized; None for a computed value."""
    dequantize = producer(value, "DequantizeLinear")
    if dequantize is not None:
        value = dequantize.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _place(node: ir.Node) -> str:
    """Returns what a node belongs to: a quantizing or dequantizing one, to its input; any other, to its module."""
    if node.op_type in _GRID:
        source = required_input(node, 0)
        maker = source.producer()
        return (source.name or "") if maker is None else _module(maker.name or "")
    reader: ir.Node | None = node
    while reader is not None and (reader.op_type in _GRID or _SCOPES not in reader.metadata_props):
        # The exporter's optimizer made this node without scopes; those of its reader are nearest.
        reader = next((usage.node for output in reader.outputs for usage in output.uses()), None)
    scopes = ast.literal_eval(reader.metadata_props[_SCOPES]) if reader is not None else []
    return scopes[-2] if len(scopes) > 1 else ""


def _module(name: str) -> str:
    """Returns the module in the name of a node."""
    return name.rpartition("/")[0] if "/" in name else name
