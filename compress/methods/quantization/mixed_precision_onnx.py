"""Lets layers of an exported int8 file run in float by editing its graph, which is much faster than a new export.

`mixed_precision.exclude_layers` does the same to the network before it is exported; both use `tensors_left_float`.
"""

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress.export.onnx_graph import constant, producer, required_input
from compress.export.onnx_rewrites import (
    add_fourth_channel,
    add_initializer,
    protect_float_layers,
    remove_fourth_channel,
    replace_node,
    same_grid,
)
from compress.methods.quantization.mixed_precision import WeightedLayer, tensors_left_float

CLAMPS = {"Relu", "Clip"}
MOVES = {"MaxPool", "Reshape", "Flatten", "Slice", "Split", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Identity"}
LAYERS = {"Conv", "Gemm"}
WEIGHTLESS = {"Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid"}


def exclude_layers_onnx(exported: bytes, layers: Collection[WeightedLayer]) -> bytes:
    """Returns the file `exported`, which is all int8, with `layers` in float.

    Raises ValueError for a layer whose int8 weight is not in the file.
    """
    model = ir.from_proto(onnx.load_from_string(exported))
    remove_fourth_channel(model)
    graph = _Graph(model)
    missing = [layer.name for layer in layers if layer.name not in graph.layers.values()]
    if missing:
        raise ValueError(f"received layers {', '.join(missing)}; expected some of {', '.join(graph.layers.values())}")
    weights = {layer.name: layer for layer in layers}
    dropped = tensors_left_float(graph.makers, graph.inputs, graph.layers, weights)
    for quantize, first in graph.first_quantize.items():
        if first in dropped:
            _remove_quantize(model, quantize)
    for node, name in graph.layers.items():
        if name in weights:
            _set_float_weights(model, node, weights[name])
    add_fourth_channel(model)
    protect_float_layers(model)
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model).SerializeToString(deterministic=True)


class _Graph:
    """The quantized tensors and int8 kernels of a file, for `tensors_left_float`.

    A tensor is represented by its first QuantizeLinear; those that repeat it on its grid after a move belong to it.
    """

    def __init__(self, model: ir.Model):
        self.first_quantize: dict[ir.Node, ir.Node] = {}
        self.inputs: dict[ir.Node, list[ir.Node]] = {}
        self.layers: dict[ir.Node, str] = {}
        self.makers: dict[ir.Node, ir.Node | None] = {}
        for node in model.graph:
            if node.op_type == "QuantizeLinear":
                self._add_quantize(node)
            elif node.op_type in LAYERS | WEIGHTLESS:
                self._add_kernel(node)

    def _add_quantize(self, node: ir.Node) -> None:
        source = required_input(node, 0).producer()
        while source is not None and source.op_type in CLAMPS | MOVES:
            source = required_input(source, 0).producer()
        before = self._tensor(required_input(node, 0))
        if before is not None and same_grid(before, node):
            self.first_quantize[node] = before
            return
        self.first_quantize[node] = node
        self.makers[node] = source if source in self.inputs else None

    def _add_kernel(self, node: ir.Node) -> None:
        if node.op_type in LAYERS:
            values = [required_input(node, 0)]
        else:
            values = [value for value in node.inputs if value is not None and not _is_constant(value)]
        tensors = [tensor for tensor in map(self._tensor, values) if tensor is not None]
        if len(tensors) < len(values):  # it reads a float tensor
            return
        if node.op_type in LAYERS:
            weight = producer(node.inputs[1], "DequantizeLinear")
            if weight is None or constant(weight.inputs[0]) is None:
                return
            self.layers[node] = str(required_input(weight, 0).name).removesuffix(".weight")
        self.inputs[node] = tensors

    def _tensor(self, value: ir.Value) -> ir.Node | None:
        """Returns the quantized tensor that `value` is, at once or after moves; None for a float one."""
        node = value.producer()
        while node is not None and node.op_type in MOVES | {"DequantizeLinear"}:
            node = required_input(node, 0).producer()
        return None if node is None else self.first_quantize.get(node)


def _is_constant(value: ir.Value) -> bool:
    """Whether the value is dequantized from an initializer."""
    node = producer(value, "DequantizeLinear")
    return node is not None and constant(node.inputs[0]) is not None


def _remove_quantize(model: ir.Model, quantize: ir.Node) -> None:
    """Lets the readers of the dequantized values of `quantize` read its input instead."""
    value = required_input(quantize, 0)
    for reader in list(quantize.outputs[0].consumers()):
        if reader.op_type == "Pad":  # it pads integers with the zero point
            reader.replace_input_with(0, value)
            reader.replace_input_with(2, add_initializer(model, f"{reader.name}_zero", np.array(0, np.float32)))
            reader.outputs[0].dtype = ir.DataType.FLOAT
            for dequantize in list(reader.outputs[0].consumers()):
                _bypass(model, dequantize, reader.outputs[0])
        elif same_grid(quantize, reader):
            _bypass(model, reader, value)
        else:
            _restore_hard_sigmoid(model, reader, value)


def _bypass(model: ir.Model, dequantize: ir.Node, value: ir.Value) -> None:
    old = dequantize.outputs[0]
    if old.is_graph_output():
        old.name, value.name = f"{old.name}_dequantized", old.name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    model.graph.remove(dequantize, safe=True)


def _restore_hard_sigmoid(model: ir.Model, sixth: ir.Node, value: ir.Value) -> None:
    """Undoes `rewrites.hard_sigmoid_as_sum`, whose clamp is the saturation of integers."""
    (total,) = sixth.outputs[0].consumers()
    gate = ir.node("HardSigmoid", [value], {"alpha": 1 / 6, "beta": 0.5}, name=f"{total.name}_gate")
    replace_node(model, total, [gate])


def _set_float_weights(model: ir.Model, node: ir.Node, layer: WeightedLayer) -> None:
    for position, (part, values) in enumerate((("weight", layer.weight), ("bias", layer.bias)), 1):
        if values is not None:
            name = f"{layer.name}.float_{part}"  # the file has the int8 weight under the plain name
            node.replace_input_with(position, add_initializer(model, name, values.detach().cpu().numpy()))
