"""Finds in an ONNX file, and in what the runtime makes of it, which layers are int8 and which are not."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from compress.export.onnx_branches import all_nodes, load_flat
from compress.export.onnx_session import open_session, session_options

LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose", "Einsum")
CLAMPS = ("Relu", "Clip")
INT8_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")
_OTHER_FLOAT = (
    "LayerNormalization", "BatchNormalization", "Softmax", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "QuickGelu",
    "GlobalAveragePool", "AveragePool", "ReduceMean", "Resize", "Add", "Mul", "Sub", "Div", "LSTM", "GRU", "RNN",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product of the file."""

    name: str  # the module's, where the weight has its name; else the node's
    operator: str
    quantized: bool
    reason: str  # why it is not quantized; empty where it is
    weight_min: int | None
    weight_max: int | None
    node: str  # its name in the file


def inspect_quantization(path: Path) -> list[Layer]:
    """Returns each layer with weights in the file: whether int8 kernels can run it, and if not, what is missing."""
    graph = load_flat(path).graph
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return [
        _layer(node, producers, readers, constants)
        for node in graph.node
        if node.op_type in LAYERS and len(node.input) > 1
    ]


def executed_operators(path: Path) -> Counter:
    """Returns how often ONNX Runtime executes each operator of the file, after all its optimizations for this CPU."""
    return Counter(node.op_type for node in _executed_nodes(path))


def float_operators(path: Path, decodes: bool = False) -> dict[str, int]:
    """Returns how often ONNX Runtime executes in float each operator that is neither convolution nor matrix product.

    A file that `decodes` ends in arithmetic on the network's outputs, or selects among them, which is float by
    intention and is not counted.
    """
    nodes = _executed_nodes(path)
    if decodes:
        nodes = _before_int8(nodes)
    executed = Counter(node.op_type for node in nodes)
    return {operator: executed[operator] for operator in _OTHER_FLOAT if executed[operator]}


def _executed_nodes(path: Path) -> list[onnx.NodeProto]:
    """Returns the nodes that ONNX Runtime executes, in order; those of a branch follow the `If` that runs it."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()  # hides the warning that the optimized file suits this CPU only, which is wanted
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        open_session(path, options=options)
        return list(all_nodes(onnx.load(options.optimized_model_filepath).graph))


def _before_int8(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Returns the nodes on which a layer in int8 depends, and these layers."""
    needed: set[str] = set()
    found = []
    for node in reversed(nodes):
        if node.op_type in INT8_LAYERS or needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def require_quantized(path: Path, float_layers: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless every layer but `float_layers` is int8, in the file and in what the runtime executes.

    A layer whose weights are float in the file must run in float, too: the runtime can quantize them on its own.
    """
    layers = inspect_quantization(path)
    claimed = [layer for layer in layers if layer.name not in float_layers]
    missing = [f"{layer.name} ({layer.reason})" for layer in claimed if not layer.quantized]
    if missing:
        raise ValueError(f"received {path} with float layers {', '.join(missing)}; expected int8 weights and inputs")
    executed = executed_operators(path)
    int8 = sum(executed[operator] for operator in INT8_LAYERS)
    if int8 < len(claimed):
        floats = {operator: executed[operator] for operator in FLOAT_LAYERS if executed[operator]}
        raise ValueError(
            f"received {path}, of whose {len(claimed)} int8 layers ONNX Runtime executes {int8} as int8 and {floats} "
            "in float; expected an int8 kernel for each"
        )
    kept = [layer.name for layer in layers if layer.weight_min is None]
    if int8 > len(layers) - len(kept):
        raise ValueError(
            f"received {path}, of whose {len(layers)} layers ONNX Runtime executes {int8} as int8 though "
            f"{', '.join(kept)} have float weights; expected a float kernel for each of these"
        )


def _layer(node: onnx.NodeProto, producers: dict, readers: dict, constants: dict) -> Layer:
    weight = _int8_weight(node, producers, constants)
    reason = ""
    if weight is None:
        reason = _why_float(node, producers, constants)
    elif _producer(node.input[0], producers) != "DequantizeLinear":
        reason = "its input is float"
    elif node.op_type == "Conv" and not _is_quantized_after(node.output[0], readers):
        reason = "its output is float"
    low, high = (int(weight.min()), int(weight.max())) if weight is not None and weight.size else (None, None)
    return Layer(_name(node, producers), node.op_type, not reason, reason, low, high, node.name)


def _why_float(node: onnx.NodeProto, producers: dict, constants: dict) -> str:
    """Returns why the weight of a layer is not int8."""
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no int8 kernel for a transposed convolution"
    if node.op_type == "Einsum":
        return "ONNX Runtime has no int8 kernel for torch.einsum: a linear layer or a 1x1 convolution has one"
    from_image = [_depends_on_image(name, producers, constants) for name in node.input[:2]]
    if node.op_type == "MatMul" and all(from_image):
        return "it multiplies two activations"
    if from_image[1]:
        return "its weight is computed from the image in the forward pass"
    stored = constants.get(node.input[1])
    if stored is not None and len(stored.dims) == 5:
        return "ONNX Runtime has no int8 kernel for a convolution in three dimensions"
    return "its weight is not stored as int8" if stored is not None else "its weight is computed in the forward pass"


def _depends_on_image(name: str, producers: dict, constants: dict) -> bool:
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current in constants or not current:
            continue
        seen.add(current)
        if current not in producers:
            return True
        waiting += producers[current].input
    return False


def _name(node: onnx.NodeProto, producers: dict) -> str:
    weight = node.input[1]
    if _producer(weight, producers) == "DequantizeLinear":
        weight = producers[weight].input[0]
    return weight.removesuffix(".weight") if weight.endswith(".weight") else node.name


def _int8_weight(node: onnx.NodeProto, producers: dict, constants: dict) -> np.ndarray | None:
    dequantize = producers.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    stored = constants.get(dequantize.input[0])
    if stored is None or stored.data_type != onnx.TensorProto.INT8:
        return None
    return onnx.numpy_helper.to_array(stored)


def _producer(name: str, producers: dict) -> str:
    return producers[name].op_type if name in producers else ""


def _is_quantized_after(name: str, readers: dict) -> bool:
    """Returns whether every reader of the tensor quantizes it, directly or after a clamp."""
    nodes = readers.get(name, [])
    return bool(nodes) and all(
        node.op_type == "QuantizeLinear" or (node.op_type in CLAMPS and _is_quantized_after(node.output[0], readers))
        for node in nodes
    )
