"""Finds the layers of an int8 file that run in float, why they do, and their share of the arithmetic."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from torch.fx import GraphModule

from compress.export.onnx_branches import load_flat
from compress.export.onnx_inspect import LAYERS, inspect_quantization
from compress.export.onnx_session import open_session, session_options
from compress.models.graph.aten_patterns import (
    CONVOLUTIONS,
    DEQUANTIZE_CHANNELS,
    LINEARS,
    TRANSPOSED,
    is_call,
    line_of,
)
from compress.utils.errors import UserError

INT8_MACS = "int8_macs_percent"  # in metrics.json of a quantized stage: the share of the arithmetic that is int8

_MOST_FLOAT_PERCENT = 50.0  # share of the multiply-accumulates above which a file is no int8 file
_MAX_NAMES = 3  # a message lists at most so many for each reason
_PRODUCTS = "it multiplies two activations"


@dataclass(frozen=True)
class FloatLayer:
    """A convolution or a matrix product that runs in float though no setting asks for it."""

    layer: str
    reason: str
    macs_percent: float  # its share of all multiply-accumulates of the file's layers

    @property
    def has_weights(self) -> bool:
        """False for the product of two activations, as in attention, for which the runtime has no int8 kernel."""
        return self.reason != _PRODUCTS


@dataclass(frozen=True)
class FloatShare:
    """The float layers of one int8 file, and the share of the arithmetic that is int8."""

    layers: list[FloatLayer]
    int8_macs_percent: float

    def remark(self) -> str | None:
        """Returns a sentence on the layers with weights that run in float; None where all run in int8."""
        layers = [layer for layer in self.layers if layer.has_weights]
        if not layers:
            return None
        percent = sum(layer.macs_percent for layer in layers)
        count = "1 layer runs" if len(layers) == 1 else f"{len(layers)} layers run"
        return f"{count} in float, not int8, with {percent:.0f} % of the multiply-accumulates: {_listed(layers)}"


def read_float_share(path: Path, network: GraphModule, requested: list[str]) -> FloatShare:
    """Reads the file to which the converted `network` was exported; skips layers that were `requested` in float."""
    layers, macs = inspect_quantization(path), count_macs(path)
    total = max(1, sum(macs.values()))
    floats = [layer for layer in layers if not layer.quantized]
    lines = _lines(network)
    weighted = [layer.node for layer in floats if layer.operator in ("Conv", "ConvTranspose", "Gemm")]
    places = dict(zip(weighted, lines, strict=True)) if len(weighted) == len(lines) else {}
    float_layers = [
        FloatLayer(layer.name, layer.reason + places.get(layer.node, ""), 100 * macs.get(layer.node, 0) / total)
        for layer in floats
        if layer.name not in requested
    ]
    int8 = sum(macs.get(layer.node, 0) for layer in layers if layer.quantized)
    return FloatShare(float_layers, 100 * int8 / total if macs else 100.0)


def require_int8(share: FloatShare, model: str, allow_float: bool) -> None:
    """Raises UserError where most of the arithmetic stays float, unless that is allowed."""
    percent = sum(layer.macs_percent for layer in share.layers)
    if percent <= _MOST_FLOAT_PERCENT or allow_float:
        return
    raise UserError(
        f"{model}, of which {percent:.0f} % of the multiply-accumulates stay float in the int8 file: "
        f"{_listed(sorted(share.layers, key=lambda layer: -layer.macs_percent))}",
        "at least half of them in int8",
        "change these layers, leave quantize out of the stages, or set quantize.allow_float=true",
    )


def count_macs(path: Path) -> dict[str, int]:
    """Counts the multiply-accumulates of each convolution and matrix product for one image, by the node's name.

    Shapes come from a run, because a file need not contain them.
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
    return {node.name: _macs(node, *(shapes[name] for name in (*node.input[:2], node.output[0]))) for node in layers}


def _macs(node: onnx.NodeProto, left: list[int], right: list[int], result: list[int]) -> int:
    if node.op_type == "Conv":
        return int(np.prod(result) * np.prod(right[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(left) * np.prod(right[1:]))
    if node.op_type == "Einsum":
        (equation,) = (attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
        operands = equation.replace(" ", "").partition("->")[0].split(",")
        sizes = dict([*zip(operands[0], left, strict=True), *zip(operands[1], right, strict=True)])
        return int(np.prod(list(sizes.values())))
    return int(np.prod(result) * np.prod(right) / max(1, result[-1] * int(np.prod(right[:-2]))))


def _lines(network: GraphModule) -> list[str]:
    """Returns the line of code that calls each layer with float weights of a converted network, in order."""
    calls = [node for node in network.graph.nodes if is_call(node, CONVOLUTIONS | LINEARS | TRANSPOSED)]
    return [line_of(node) for node in calls if not is_call(node.args[1], {DEQUANTIZE_CHANNELS})]


def _listed(layers: list[FloatLayer]) -> str:
    """Lists the layers by reason, with a few names each."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer.reason, []).append(layer.layer)
    parts = []
    for reason, names in reasons.items():
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        parts.append(f"{', '.join(names[:_MAX_NAMES])}{more}: {reason}")
    return "; ".join(parts)
