"""Reads the shapes of the layers of an ONNX file, and counts their multiply-accumulates."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from compress.export.onnx_branches import load_flat
from compress.export.onnx_inspect import LAYERS
from compress.export.onnx_session import open_session, session_options


@dataclass(frozen=True)
class LayerShapes:
    """The shapes of a convolution or a matrix product of a file, for one image."""

    node: onnx.NodeProto
    left: list[int]
    right: list[int]  # of the weights, where it has any
    result: list[int]

    def macs(self) -> int:
        """Returns the multiply-accumulates."""
        if self.node.op_type == "Conv":
            return math.prod(self.result) * math.prod(self.right[1:])
        if self.node.op_type == "ConvTranspose":
            return math.prod(self.left) * math.prod(self.right[1:])
        if self.node.op_type == "Einsum":
            (equation,) = (attribute.s.decode() for attribute in self.node.attribute if attribute.name == "equation")
            operands = equation.replace(" ", "").partition("->")[0].split(",")
            sizes = dict([*zip(operands[0], self.left, strict=True), *zip(operands[1], self.right, strict=True)])
            return math.prod(sizes.values())
        return math.prod(self.result) * math.prod(self.right) // max(1, self.result[-1] * math.prod(self.right[:-2]))

    def elements(self) -> int:
        """Returns how many values it reads and writes."""
        return math.prod(self.left) + math.prod(self.right) + math.prod(self.result)


def layer_shapes(path: Path) -> dict[str, LayerShapes]:
    """Returns the shapes of each convolution and matrix product for one image, by the node's name.

    They come from a run, because a file need not contain them.
    """
    model = load_flat(path)
    layers = [node for node in model.graph.node if node.op_type in LAYERS and len(node.input) > 1]
    if not layers:
        return {}
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    needed = {name for node in layers for name in (*node.input[:2], node.output[0])} - set(constants)
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(needed - known))
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(model.SerializeToString(), options=options)
    image = session.get_inputs()[0]
    values = {image.name: np.zeros((1, *image.shape[1:]), np.float32)}
    names = [output.name for output in session.get_outputs()]
    values |= dict(zip(names, session.run(names, values), strict=True))
    shapes = constants | {name: list(value.shape) for name, value in values.items()}
    return {
        node.name: LayerShapes(node, *(shapes[name] for name in (*node.input[:2], node.output[0]))) for node in layers
    }
