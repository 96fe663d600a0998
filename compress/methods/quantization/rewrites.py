"""Rewrites of captured and converted graphs that bring them into forms for which ONNX Runtime has int8 kernels."""

import torch
from torch import nn
from torch.fx import GraphModule, Node

from compress.models.graph.aten_patterns import (
    CONVOLUTIONS,
    DEQUANTIZE,
    DEQUANTIZE_CHANNELS,
    LINEARS,
    QUANTIZE,
    argument,
    aten,
    is_call,
    is_float,
    is_move,
    only_returned,
    replace_call,
    tensor_of,
    weighted_calls,
)

GATE_OF = {aten.hardswish.default: aten.hardsigmoid.default, aten.silu.default: aten.sigmoid.default}


def split_gated_activations(module: GraphModule) -> None:
    """Writes Hardswish and SiLU as x times a gate, in place: the runtime has int8 kernels for both factors."""
    for node in list(module.graph.nodes):
        if not is_call(node, set(GATE_OF)):
            continue
        with module.graph.inserting_before(node):
            gate = module.graph.call_function(GATE_OF[node.target], (node.args[0],))
            product = module.graph.call_function(aten.mul.Tensor, (node.args[0], gate))
        gate.meta = dict(node.meta)
        replace_call(module, node, product)
    module.recompile()


def batch_norm_as_convolution(module: GraphModule) -> None:
    """Puts a 1x1 depthwise convolution of ones before each batch norm that has no convolution to fold into, in place.

    The two fold into a scale and a shift for each channel, for which the runtime has an int8 kernel. Networks that
    normalise before their convolutions would otherwise go to float and back at every block.
    """
    for node in list(module.graph.nodes):
        if not is_call(node, {aten.batch_norm.default}) or node.meta["val"].dim() != 4:
            continue
        x, scale = node.args[0], argument(node, "weight")
        if scale is None or (is_call(x, CONVOLUTIONS) and len(x.users) == 1):
            continue
        channels = len(tensor_of(scale, module))
        name = f"{str(scale.target).removesuffix('.weight')}.as_convolution"
        holder = nn.Module()
        holder.weight = nn.Parameter(torch.ones(channels, 1, 1, 1), requires_grad=False)
        module.set_submodule(name, holder)
        with module.graph.inserting_before(node):
            ones = module.graph.get_attr(f"{name}.weight")
            conv = module.graph.call_function(aten.conv2d.default, (x, ones, None, [1, 1], [0, 0], [1, 1], channels))
        conv.meta = dict(node.meta)
        node.replace_input_with(x, conv)
    module.recompile()


def flatten_linear_inputs(module: GraphModule) -> None:
    """Lets each linear layer read rows (N, C), in place: the runtime has an int8 kernel for them, not for (N, T, C)."""
    for node in list(module.graph.nodes):
        shape = node.meta["val"].shape if is_call(node, LINEARS) else ()
        sizes = [size if isinstance(size, int) else -1 for size in shape]  # the batch is at most one of these
        if len(shape) <= 2 or sizes.count(-1) > 1:
            continue
        if -1 not in sizes:
            sizes[0] = -1
        x, readers = node.args[0], list(node.users)
        with module.graph.inserting_before(node):
            rows = module.graph.call_function(aten.reshape.default, (x, [-1, x.meta["val"].shape[-1]]))
        node.replace_input_with(x, rows)
        with module.graph.inserting_after(node):
            tokens = module.graph.call_function(aten.reshape.default, (node, sizes))
        for reader in readers:
            reader.replace_input_with(node, tokens)
        tokens.meta = dict(node.meta)
        rows.meta = dict(node.meta) | {"val": x.meta["val"].flatten(0, -2)}
        node.meta = node.meta | {"val": node.meta["val"].flatten(0, -2)}
    module.recompile()


def name_weights(module: GraphModule, names: list[str | None]) -> None:
    """Stores each int8 weight under the name of its parameter, in place; `names` are the parameters of all layers.

    The layers of the exported file then have their names in the network.
    """
    for node, name in zip(weighted_calls(module), names, strict=True):
        if not is_call(node.args[1], {DEQUANTIZE_CHANNELS}):
            continue
        if name is None:
            raise ValueError(f"received int8 weights for {node.name} from no parameter; expected those of a parameter")
        stored = node.args[1].args[0]
        path, _, leaf = name.rpartition(".")
        owner, int8 = module.get_submodule(path), tensor_of(stored, module)
        if hasattr(owner, leaf):
            delattr(owner, leaf)
        owner.register_buffer(leaf, int8)
        stored.target = name
    module.recompile()


def requantize_moves(module: GraphModule) -> None:
    """Quantizes again, on the same grid, after each operator that only moves quantized values, in place.

    The runtime keeps such an operator in int8 only between a dequantize and a quantize. No value changes.
    """
    for node in list(module.graph.nodes):
        source = node.args[0] if is_move(node) else None
        while isinstance(source, Node) and not is_call(source, {DEQUANTIZE}) and not is_float(source):
            source = source.args[0] if source.args else None
        if not is_call(source, {DEQUANTIZE}) or not is_float(node) or only_returned(node):
            continue
        readers = list(node.users)
        with module.graph.inserting_after(node):
            quantized = module.graph.call_function(QUANTIZE, (node, *source.args[1:]))
        with module.graph.inserting_after(quantized):
            dequantized = module.graph.call_function(DEQUANTIZE, (quantized, *source.args[1:]))
        quantized.meta, dequantized.meta = {"val": node.meta["val"]}, {"val": node.meta["val"]}
        for reader in readers:
            reader.replace_input_with(node, dequantized)
    module.recompile()


def quantize_biases(module: GraphModule) -> None:
    """Stores the bias of each int8 convolution or linear layer as int32 on the grid s_x * s_w of sums, in place."""
    for node in list(module.graph.nodes):
        if not is_call(node, CONVOLUTIONS | LINEARS):
            continue
        x, weight, bias = node.args[0], node.args[1], argument(node, "bias")
        if bias is None or not is_call(x, {DEQUANTIZE}) or not is_call(weight, {DEQUANTIZE_CHANNELS}):
            continue
        scale = x.args[1] * tensor_of(weight.args[1], module).double()
        limit = torch.iinfo(torch.int32)
        steps = (tensor_of(bias, module).double() / scale).round().clamp(limit.min, limit.max)
        stored = {
            "int32": steps.int(),
            "scale": scale.float(),
            "zero_point": torch.zeros(len(scale), dtype=torch.int32),
        }
        holder = nn.Module()
        for name, value in stored.items():
            holder.register_buffer(name, value.detach())
        module.set_submodule(f"bias_of_{node.name}", holder)
        with module.graph.inserting_before(node):
            values = [module.graph.get_attr(f"bias_of_{node.name}.{name}") for name in stored]
            dequantized = module.graph.call_function(
                DEQUANTIZE_CHANNELS, (*values, 0, limit.min, limit.max, torch.int32)
            )
        node.replace_input_with(bias, dequantized)
    module.graph.eliminate_dead_code()
    module.recompile()


def hard_sigmoid_as_sum(module: GraphModule) -> None:
    """Writes hardsigmoid between int8 tensors as x / 6 + 1 / 2, in place, which has an int8 kernel.

    Reading x with a sixth of its scale divides it at no cost. The clamp to 0..1 is not needed: an unsigned value with
    a range inside 0..1 saturates at the same ends.
    """
    for node in list(module.graph.nodes):
        if not is_call(node, {aten.hardsigmoid.default}) or not is_call(node.args[0], {DEQUANTIZE}):
            continue
        (quantize,) = node.users if len(node.users) == 1 else (None,)
        if not is_call(quantize, {QUANTIZE}):
            continue
        x = node.args[0]
        name = f"half_of_{node.name}"
        module.register_buffer(name, torch.tensor([255], dtype=torch.uint8))
        with module.graph.inserting_before(node):
            sixth = module.graph.call_function(DEQUANTIZE, (x.args[0], x.args[1] / 6, *x.args[2:]))
            half = module.graph.call_function(DEQUANTIZE, (module.graph.get_attr(name), 0.5 / 255, *HALF_GRID))
            total = module.graph.call_function(aten.add.Tensor, (sixth, half))
        replace_call(module, node, total)
    module.graph.eliminate_dead_code()
    module.recompile()


HALF_GRID = (0, 0, 255, torch.uint8)
