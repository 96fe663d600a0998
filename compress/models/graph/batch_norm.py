"""Turns batch norm and dropout of a captured graph into modules again, so that train() and eval() work.

PT2E's own switch between training and evaluation rewrites the graph by pattern and loses batch norm's eps and momentum
and dropout's p; torchao's fusion of convolution and batch norm for training fixes eps at 1e-5.
"""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from compress.models.graph.aten_patterns import (
    CONVOLUTIONS,
    DROPOUT,
    argument,
    aten,
    is_call,
    is_dropout,
    only_user,
    place_of,
    replace_call,
    tensor_of,
)
from compress.utils.errors import UserError

# Below this a channel's batch-norm scale counts as zero: training divides by it.
SMALLEST_SCALE = 1e-8


class ConvBatchNorm(nn.Module):
    """A convolution and its batch norm, trained with the folded and fake-quantized weights of the exported file.

    In training the weights are scaled by the running statistics, rounded, and scaled back; then batch norm normalises
    with the batch's own statistics (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2, in its one-pass form; the
    paper scales the convolution's output back, which is the same function with ten times as many multiplications). In
    eval mode, and once `frozen`, only the folded convolution runs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, options: dict, batch_norm: nn.Module):
        super().__init__()
        self.weight, self.bias, self.options = weight, bias, options
        self.convolve = F.conv1d if weight.dim() == 3 else F.conv2d
        self.batch_norm = batch_norm
        self.weight_quantizer: nn.Module = nn.Identity()
        self.frozen = False

    def scale(self) -> Tensor:
        """Returns the factor of each output channel in folding, (C,)."""
        return self.batch_norm.weight * torch.rsqrt(self.batch_norm.running_var + self.batch_norm.eps)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns weight (C, C_in / groups, ...) and bias (C,) of the convolution that equals both in eval mode."""
        scale, mean = self.scale(), self.batch_norm.running_mean
        offset = mean if self.bias is None else mean - self.bias
        return self.weight * self.per_channel(scale), self.batch_norm.bias - offset * scale

    def per_channel(self, scale: Tensor) -> Tensor:
        """Reshapes (C,) so that it multiplies the output channels of the weight."""
        return scale.reshape(-1, *[1] * (self.weight.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C_in, ...) to (N, C, ...)."""
        if not self.training or self.frozen:
            weight, bias = self.folded()
            return self.convolve(x, self.weight_quantizer(weight), bias, **self.options)
        scale = self.scale()
        scale = torch.where(scale.abs() < SMALLEST_SCALE, SMALLEST_SCALE, scale)
        scale = self.per_channel(scale)
        weight = self.weight_quantizer(self.weight * scale) / scale
        return self.batch_norm(self.convolve(x, weight, self.bias, **self.options))


def lift_modules(module: GraphModule) -> None:
    """Replaces batch norm and dropout by modules, in place: by `ConvBatchNorm` after a convolution of its own."""
    uses = Counter(node.target for node in module.graph.nodes if node.op == "get_attr")
    for node in list(module.graph.nodes):
        if is_call(node, {aten.batch_norm.default}):
            conv = node.args[0]
            if is_call(conv, CONVOLUTIONS) and only_user(conv) and _owns_weight(conv, uses) and _is_affine(node):
                _lift_conv_batch_norm(module, conv, node)
            else:
                inputs = (node.args[0],)
                _call_module(module, node, f"batch_norm_of_{node.name}", _batch_norm(module, node), inputs)
        elif is_call(node, {aten.dropout.default}):
            _call_module(module, node, f"{DROPOUT}{node.name}", nn.Dropout(argument(node, "p")), (node.args[0],))
    _tidy(module)


def remove_dropout(module: GraphModule) -> None:
    """Removes every dropout, in place: only training needs it."""
    for node in list(module.graph.nodes):
        if is_dropout(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    _tidy(module)


def lower_conv_batch_norm(module: GraphModule) -> None:
    """Replaces every `ConvBatchNorm`, in place, by the folded convolution with its weight's fake quantization."""
    for node in list(module.graph.nodes):
        block = module.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(block, ConvBatchNorm):
            continue
        with torch.no_grad():
            weight, bias = block.folded()
        folded = nn.Module()
        folded.weight, folded.bias = nn.Parameter(weight), nn.Parameter(bias)
        module.set_submodule(node.target, folded)
        with module.graph.inserting_before(node):
            weight_node = module.graph.get_attr(f"{node.target}.weight")
            bias_node = module.graph.get_attr(f"{node.target}.bias")
            if not isinstance(block.weight_quantizer, nn.Identity):
                folded.weight_quantizer = block.weight_quantizer
                weight_node = module.graph.call_module(f"{node.target}.weight_quantizer", (weight_node,))
            operator = aten.conv1d.default if weight.dim() == 3 else aten.conv2d.default
            conv = module.graph.call_function(operator, (node.args[0], weight_node, bias_node, *block.options.values()))
        replace_call(module, node, conv)
    _tidy(module)


def conv_batch_norms(module: nn.Module) -> list[ConvBatchNorm]:
    """Returns every `ConvBatchNorm` inside `module`."""
    return [block for block in module.modules() if isinstance(block, ConvBatchNorm)]


def _lift_conv_batch_norm(module: GraphModule, conv: Node, node: Node) -> None:
    options = {name: argument(conv, name) for name in ("stride", "padding", "dilation", "groups")}
    weight, bias = tensor_of(conv.args[1], module), tensor_of(argument(conv, "bias"), module)
    block = ConvBatchNorm(weight, bias, options, _batch_norm(module, node))
    _call_module(module, node, conv.args[1].target.removesuffix(".weight"), block, (conv.args[0],))


def _batch_norm(module: GraphModule, node: Node) -> nn.Module:
    """Returns the torch.nn batch norm of a captured batch_norm call, with the same parameter objects."""
    weight, bias, mean, variance = (tensor_of(argument(node, name), module) for name in _BATCH_NORM_TENSORS)
    if mean is None:
        raise UserError(
            f"{place_of(node)}, a batch norm without running statistics (track_running_stats=False)",
            "one whose result for an image does not depend on the other images of its batch",
            "set track_running_stats=True, or use GroupNorm",
        )
    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d}.get(node.meta["val"].dim(), nn.BatchNorm1d)
    batch_norm = kind(len(mean), argument(node, "eps"), argument(node, "momentum"), affine=weight is not None)
    batch_norm.weight, batch_norm.bias, batch_norm.running_mean, batch_norm.running_var = weight, bias, mean, variance
    return batch_norm.eval()


_BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _owns_weight(conv: Node, uses: Counter) -> bool:
    weight = conv.args[1]
    return weight.op == "get_attr" and uses[weight.target] == 1 and len(weight.users) == 1


def _is_affine(batch_norm: Node) -> bool:
    return argument(batch_norm, "weight") is not None and argument(batch_norm, "running_mean") is not None


def _call_module(module: GraphModule, node: Node, name: str, replacement: nn.Module, inputs: tuple) -> None:
    module.set_submodule(name, replacement)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, inputs)
    replace_call(module, node, call)


def _tidy(module: GraphModule) -> None:
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
