"""Keeps named layers of a prepared network in float: removes their fake quantization and ranges no layer needs."""

import copy
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
from torchao.quantization.pt2e.observer import ObserverBase

from compress.models.graph.aten_patterns import (
    CLAMPS,
    CONVOLUTIONS,
    INT8_KERNEL,
    LINEARS,
    argument,
    is_call,
    origin,
    tensor_of,
    weight_name,
)
from compress.models.graph.batch_norm import ConvBatchNorm, lower_conv_batch_norm

T = TypeVar("T", bound=Hashable)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class WeightedLayer:
    """A layer that `convert` would make int8, in its float form: batch norm folded, weights not rounded."""

    name: str  # the module's name: `layer1.0.conv1`
    operator: str
    weight: Tensor  # (C, C_in / groups, ...)
    bias: Tensor | None  # (C,)
    macs: int  # multiply-accumulates for one image


def weighted_layers(prepared: GraphModule) -> list[WeightedLayer]:
    """Returns the layers of `prepared` with a quantized weight, in the order in which they run; copies it first."""
    module = copy.deepcopy(prepared)
    lower_conv_batch_norm(module)
    layers: dict[str, WeightedLayer] = {}
    for node, name in _layers(module).items():
        weight, bias = (tensor_of(part, module) for part in (node.args[1].args[0], argument(node, "bias")))
        macs = weight[0].numel() * math.prod(int(size) for size in node.meta["val"].shape[1:])
        before = layers[name].macs if name in layers else 0  # a layer that runs twice
        layers[name] = WeightedLayer(name, _operator(node, weight), weight, bias, before + macs)
    return list(layers.values())


def exclude_layers(
    prepared: GraphModule, names: Collection[str], uncorrected: GraphModule | None = None
) -> GraphModule:
    """Keeps the layers `names` in float when `prepared` is converted; changes it in place and returns it.

    A tensor that an int8 layer reads, or an int8 kernel computes, stays quantized, and a float layer reads it so: a
    convolution whose output is read in both forms would lose its int8 kernel. The remaining state keeps its names.
    With `uncorrected` the layers get back the weights that they had before corrections for their rounding.
    Raises ValueError for a name that is no layer with a quantized weight.
    """
    layers = _layers(prepared)
    unknown = set(names) - set(layers.values())
    if unknown:
        raise ValueError(
            f"received layers {', '.join(sorted(unknown))} to keep in float; expected some of "
            f"{', '.join(dict.fromkeys(layers.values()))}"
        )
    makers, inputs = _read(prepared)
    dropped = tensors_left_float(makers, inputs, layers, names)
    for layer, name in layers.items():
        if name not in names:
            continue
        if layer.op == "call_module":
            prepared.get_submodule(layer.target).weight_quantizer = nn.Identity()
        else:
            dropped.add(layer.args[1])
    if uncorrected is not None:
        for parameter, value in prepared.named_parameters():
            if parameter.rpartition(".")[0] in names:
                value.data.copy_(uncorrected.get_parameter(parameter))
    for observer in dropped:
        observer.replace_all_uses_with(observer.args[0])
        prepared.graph.erase_node(observer)
    prepared.delete_all_unused_submodules()
    prepared.recompile()
    return prepared


def tensors_left_float(
    makers: Mapping[T, K | None], inputs: Mapping[K, Sequence[T]], layers: Mapping[K, str], names: Collection[str]
) -> set[T]:
    """Returns the quantized tensors that become float once the layers `names` run in float.

    `makers` maps every quantized tensor to the int8 kernel that computes it, or to None; `inputs` maps each int8
    kernel to the quantized tensors that it reads; `layers` holds the names of the kernels that have weights. A kernel
    without weights becomes float when one of its inputs does.
    """
    readers = {tensor: [kernel for kernel in inputs if tensor in inputs[kernel]] for tensor in makers}
    floats = {kernel for kernel, name in layers.items() if name in names}
    dropped: set[T] = set()
    while True:
        before = len(dropped)
        for tensor, maker in makers.items():
            if any(reader in layers and reader not in floats for reader in readers[tensor]):
                continue
            if maker in floats or (maker is None and readers[tensor] and floats.issuperset(readers[tensor])):
                dropped.add(tensor)
        floats |= {kernel for kernel in inputs if kernel not in layers and dropped & set(inputs[kernel])}
        if len(dropped) == before:
            return dropped


def _layers(prepared: GraphModule) -> dict[Node, str]:
    """Returns every call of a layer with a quantized weight, with the layer's name."""
    layers = {}
    for node in prepared.graph.nodes:
        if is_call(node, CONVOLUTIONS | LINEARS) and _is_observer(node.args[1], prepared):
            name = weight_name(node)
            if name is not None:
                layers[node] = name.removesuffix(".weight")
        block = prepared.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(block, ConvBatchNorm) and not isinstance(block.weight_quantizer, nn.Identity):
            layers[node] = node.target
    return layers


def _read(prepared: GraphModule) -> tuple[dict[Node, Node | None], dict[Node, list[Node]]]:
    """Returns the makers of the observed activations and the inputs of the int8 kernels, for `tensors_left_float`."""
    kernels = [node for node in prepared.graph.nodes if node.meta.get(INT8_KERNEL)]
    makers = {}
    for node in prepared.graph.nodes:
        if _is_observer(node, prepared) and node.args[0].op != "get_attr":
            source = node.args[0]
            while is_call(source, CLAMPS):
                source = source.args[0]
            makers[node] = source if source in kernels else None
    inputs = {kernel: [origin(value) for value in kernel.all_input_nodes] for kernel in kernels}
    return makers, {kernel: [tensor for tensor in read if tensor in makers] for kernel, read in inputs.items()}


def _is_observer(node: Node, module: GraphModule) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(node.target), (ObserverBase, FakeQuantizeBase))


def _operator(node: Node, weight: Tensor) -> str:
    if is_call(node, LINEARS):
        return "linear"
    return "depthwise conv" if argument(node, "groups") > 1 and weight.shape[1] == 1 else "conv"
