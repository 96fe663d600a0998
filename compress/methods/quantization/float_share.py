"""Finds the layers of an int8 file that run in float, why they do, and their share of the arithmetic."""

from dataclasses import dataclass
from pathlib import Path

from torch.fx import GraphModule

from compress.export.onnx_inspect import inspect_quantization
from compress.export.onnx_shapes import layer_shapes
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
    layers = inspect_quantization(path)
    macs = {node: shapes.macs() for node, shapes in layer_shapes(path).items()}
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
