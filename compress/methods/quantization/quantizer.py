"""Annotates the tensors of a captured network that are quantized, in forms for which ONNX Runtime has int8 kernels."""

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from compress.methods.quantization.calibration import ACTIVATION_OBSERVERS
from compress.methods.quantization.fake_quantize import RuntimeFakeQuantize, WeightFakeQuantize
from compress.models.graph.aten_patterns import (
    CLAMPS,
    CONCATENATIONS,
    CONVOLUTIONS,
    GATES,
    INT8_KERNEL,
    LINEARS,
    PRODUCTS,
    SUMS,
    is_call,
    is_float,
    is_spatial_mean,
    only_returned,
    only_user,
    origin,
    result_values,
)
from compress.models.graph.batch_norm import ConvBatchNorm

ANNOTATION = "quantization_annotation"
AVERAGING_CONSTANT = 0.01  # share of the newest batch in a moving range, as in torch's own default


class RuntimeQuantizer(Quantizer):
    """Quantizes activations to unsigned 8 bits per tensor, weights to signed 7 or 8 bits per channel, symmetric.

    Unsigned activations with signed weights per channel are the fast form of ONNX Runtime on x86. Without VNNI its
    AVX2 kernels add two products in 16 bits, which saturates unless weights keep to 7 bits.
    A tensor is quantized once, after the activation with which its producer is fused: operators that only move values
    (flatten, slice, zero padding, channel shuffle, max pooling) pass the parameters of their input on.
    """

    def __init__(self, weight_bits: int, qat: bool, calibration: str = "min_max"):
        super().__init__()
        if weight_bits not in (7, 8):
            raise ValueError(f"received weight_bits={weight_bits}; expected 7 or 8")
        if calibration not in ACTIVATION_OBSERVERS:
            raise ValueError(f"received calibration={calibration!r}; expected one of {', '.join(ACTIVATION_OBSERVERS)}")
        self.weight_spec = _weight_spec(weight_bits, qat)
        self.activation_spec = _activation_spec(qat, calibration)

    def annotate(self, module: GraphModule) -> GraphModule:
        """Annotates `module` in place, a graph in which convolutions with batch norm are `ConvBatchNorm` calls."""
        quantized_inputs = {node: self._annotate_weight(node, module) for node in module.graph.nodes}
        quantized_inputs = {node: inputs for node, inputs in quantized_inputs.items() if inputs}
        for node in quantized_inputs:
            node.meta[INT8_KERNEL] = True
        quantized = {origin(tensor) for inputs in quantized_inputs.values() for tensor in inputs}
        quantized |= self._outputs(quantized_inputs, module)
        groups = _shared_ranges(module, quantized)
        for node in module.graph.nodes:
            if node in quantized:
                self._annotate_output(node, groups.get(node, node))
        return module

    def validate(self, module: GraphModule) -> None:
        """Refuses nothing: an operator without an int8 kernel stays float."""

    def weight_quantizer(self) -> WeightFakeQuantize:
        """Returns a new fake quantization for one convolution's folded weight."""
        spec = self.weight_spec
        return spec.observer_or_fake_quant_ctr(
            dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max, qscheme=spec.qscheme, ch_axis=0
        )

    def _annotate_weight(self, node: Node, module: GraphModule) -> list[Node]:
        """Annotates the weight, if any; returns the activations that must be int8 for the int8 kernel of `node`."""
        if is_call(node, CONVOLUTIONS | LINEARS) and node.args[1].op == "get_attr":
            node.meta[ANNOTATION] = QuantizationAnnotation({node.args[1]: self.weight_spec}, _annotated=True)
            return [node.args[0]]
        if is_conv_batch_norm(node, module):
            return [node.args[0]]
        if is_call(node, SUMS | PRODUCTS):
            both = [value for value in node.args[:2] if isinstance(value, Node) and is_float(value)]
            return both if len(both) == 2 and not node.kwargs else []
        if is_call(node, CONCATENATIONS) and not only_returned(node):
            return list(node.args[0])
        if is_spatial_mean(node) or is_call(node, GATES):
            return [node.args[0]]
        return []

    def _outputs(self, quantized_inputs: dict[Node, list[Node]], module: GraphModule) -> set[Node]:
        """Returns the node after which each int8 kernel's output is quantized, past fused clamps; logits stay float."""
        logits = {origin(node) for node in result_values(module.graph)}
        ends = set()
        for node in quantized_inputs:
            end = node
            if is_call(node, LINEARS | SUMS) or is_convolution(node, module):
                while (user := only_user(end)) is not None and is_call(user, CLAMPS):
                    end = user
            if end not in logits or is_convolution(node, module):
                ends.add(end)
        return ends

    def _annotate_output(self, node: Node, leader: Node) -> None:
        annotation = node.meta.setdefault(ANNOTATION, QuantizationAnnotation(_annotated=True))
        if node is not leader:
            annotation.output_qspec = SharedQuantizationSpec(leader)
        else:
            annotation.output_qspec = self.activation_spec


def is_conv_batch_norm(node: Node, module: GraphModule) -> bool:
    """Whether `node` calls a `ConvBatchNorm`."""
    return node.op == "call_module" and isinstance(module.get_submodule(node.target), ConvBatchNorm)


def is_convolution(node: Node, module: GraphModule) -> bool:
    """Whether `node` is a convolution, with batch norm or without. Its int8 kernel has no float output."""
    return is_call(node, CONVOLUTIONS) or is_conv_batch_norm(node, module)


def _shared_ranges(module: GraphModule, quantized: set[Node]) -> dict[Node, Node]:
    """Returns the first tensor of the group for each tensor that is concatenated with others: all share one range.

    The concatenation has one grid anyway; sharing it from the start saves rescaling each part.
    """
    leader: dict[Node, Node] = {}
    order = {node: position for position, node in enumerate(module.graph.nodes)}

    def find(node: Node) -> Node:
        while leader.get(node, node) is not node:
            node = leader[node]
        return node

    for node in module.graph.nodes:
        if is_call(node, CONCATENATIONS) and node in quantized:
            members = {find(member) for member in [node, *map(origin, node.args[0])]}
            first = min(members, key=order.__getitem__)
            leader.update(dict.fromkeys(members, first))
    return {node: find(node) for node in leader}


def _weight_spec(bits: int, qat: bool) -> QuantizationSpec:
    limit = 2 ** (bits - 1)
    observer = PerChannelMinMaxObserver
    if qat:
        observer = WeightFakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver)
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-limit,
        # Two products of 255 and 64 still fit into 16 bits, so 7 bits may use 64; 8 bits end at 127.
        quant_max=min(limit, 127),
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observer,
    )


def _activation_spec(qat: bool, calibration: str) -> QuantizationSpec:
    observer = ACTIVATION_OBSERVERS[calibration]
    if qat:
        observer = RuntimeFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, averaging_constant=AVERAGING_CONSTANT
        )
    return QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observer,
    )
