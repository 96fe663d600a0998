"""Rewrites of an exported ONNX graph into operators that ONNX Runtime runs faster, with the same results."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from compress.export.onnx_graph import constant, producer, required_constant, required_input, required_shape
from compress.export.onnx_names import name_beside

FOURTH_CHANNEL = "fourth_channel"  # the initializer with the place of the channel


def use_global_average_pool(model: ir.Model) -> None:
    """Replaces ReduceMean over height and width by GlobalAveragePool, which has an int8 kernel, in place."""
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or not _is_spatial(node):
            continue
        keep = node.attributes.get_int("keepdims", 1)
        source = required_input(node, 0)
        pool = ir.node("GlobalAveragePool", [source], name=name_beside(node, "GlobalAveragePool"))
        _describe(pool.outputs[0], source, [*required_shape(source)[:2], 1, 1])
        tail = pool
        added = [pool]
        result = node.outputs[0]
        if not keep:
            grid = _grid_after(result)
            added += _requantize(pool, grid) if grid else []
            tail = ir.node("Flatten", [added[-1].outputs[0]], {"axis": 1}, name=name_beside(node, "Flatten"))
            added.append(tail)
        replace_node(model, node, added)


def pad_integers(model: ir.Model) -> None:
    """Replaces zero padding between int8 tensors on one grid by padding the integers with the zero point, in place.

    ONNX Runtime has the integer kernel but does not choose it itself.
    """
    for node in list(model.graph):
        if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
            continue
        before, after = producer(node.inputs[0], "DequantizeLinear"), [usage.node for usage in node.outputs[0].uses()]
        if before is None or len(after) != 1:
            continue
        (quantize,) = after
        if quantize.op_type != "QuantizeLinear" or not same_grid(before, quantize) or not _pads_zero(node):
            continue
        inputs = [before.inputs[0], node.inputs[1], before.inputs[2], *node.inputs[3:]]
        pad = ir.node("Pad", inputs, {"mode": "constant"}, name=node.name)
        _describe(pad.outputs[0], required_input(before, 0), required_shape(node.outputs[0]))
        quantize.outputs[0].replace_all_uses_with(pad.outputs[0])
        model.graph.insert_before(node, pad)
        pad.outputs[0].name = quantize.outputs[0].name
        model.graph.remove([quantize, node], safe=True)


def fold_padding(model: ir.Model) -> None:
    """Moves the padding of `pad_integers` into the int8 convolution that reads it, in place.

    Frameworks that pad more at the end than at the start (TensorFlow's "same") need such nodes; each copies its tensor.
    """
    for node in list(model.graph):
        rows = _spatial_padding(node)
        readers = [usage.node for usage in node.outputs[0].uses()]
        if rows is None or len(readers) != 1 or readers[0].op_type != "DequantizeLinear" or not _read_once(readers):
            continue
        (dequantize,) = readers
        (conv,) = (usage.node for usage in dequantize.outputs[0].uses())
        if conv.op_type != "Conv" or conv.inputs[0] is not dequantize.outputs[0]:
            continue
        own = conv.attributes.get_ints("pads", [0, 0, 0, 0])
        conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, rows, strict=True)])
        dequantize.replace_input_with(0, node.inputs[0])
        _describe(dequantize.outputs[0], dequantize.outputs[0], required_shape(required_input(node, 0)))
        model.graph.remove(node, safe=True)


def merge_slices(model: ir.Model) -> None:
    """Merges two successive slices along different axes, in place, also where they are quantized on one grid."""
    for second in list(model.graph):
        if second.op_type != "Slice":
            continue
        between: list[ir.Node] = []
        before = second.inputs[0]
        if (dequantize := producer(before, "DequantizeLinear")) is not None:
            quantize = producer(dequantize.inputs[0], "QuantizeLinear")
            if quantize is None or not same_grid(dequantize, quantize):
                continue
            between, before = [quantize, dequantize], quantize.inputs[0]
        first = producer(before, "Slice")
        if first is None or not _read_once([first, *between]):
            continue
        first_rows, second_rows = (_slice_rows(node) for node in (first, second))
        if first_rows is None or second_rows is None or set(first_rows[2]) & set(second_rows[2]):
            continue
        parts = zip(("starts", "ends", "axes", "steps"), first_rows, second_rows, strict=True)
        rows = [add_initializer(model, f"{second.name}_{part}", np.concatenate(pair)) for part, *pair in parts]
        merged = ir.node("Slice", [first.inputs[0], *rows], name=second.name)
        replace_node(model, second, [merged])
        model.graph.remove([*reversed(between), first], safe=True)


def add_fourth_channel(model: ir.Model) -> None:
    """Makes an int8 convolution read an image of 3 channels as one of 4, the last with weights of zero, in place.

    The sums are the same integers. ONNX Runtime's kernels multiply values in fours: 27 values a filter are no multiple
    of four, 36 are, and all of ResNet-56 took 4 % less time (one thread, AVX2).
    """
    for node in list(model.graph):
        if node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
            continue
        image, filters = (producer(value, "DequantizeLinear") for value in node.inputs[:2])
        if image is None or filters is None:
            continue
        quantize, stored = producer(image.inputs[0], "QuantizeLinear"), constant(filters.inputs[0])
        if quantize is None or not required_input(quantize, 0).is_graph_input():
            continue
        if stored is None or stored.ndim != 4 or stored.shape[1] != 3 or not _read_once([image]):
            continue
        _set_weight(filters, np.pad(stored, ((0, 0), (0, 1), (0, 0), (0, 0))))
        ends = add_initializer(model, FOURTH_CHANNEL, np.array([0, 0, 0, 0, 0, 1, 0, 0]))
        integers, zero_point = required_input(image, 0), image.inputs[2]
        pad = ir.node("Pad", [integers, ends, zero_point], {"mode": "constant"}, name=f"{node.name}/{FOURTH_CHANNEL}")
        rows = required_shape(integers)
        shape = [rows[0], 4, *rows[2:]]
        _describe(pad.outputs[0], integers, shape)
        model.graph.insert_before(image, pad)
        image.replace_input_with(0, pad.outputs[0])
        _describe(image.outputs[0], image.outputs[0], shape)


def channels_in_int8_file(in_channels: int, groups: int) -> int:
    """Returns the channels that a convolution reads in an int8 file: four where the image has three."""
    return 4 if (in_channels, groups) == (3, 1) else in_channels


def remove_fourth_channel(model: ir.Model) -> None:
    """Undoes `add_fourth_channel`, in place."""
    for node in [node for node in model.graph if node.op_type == "Conv"]:
        image, filters = (producer(value, "DequantizeLinear") for value in node.inputs[:2])
        pad = producer(image.inputs[0], "Pad") if image is not None else None
        if image is None or filters is None or pad is None or required_input(pad, 1).name != FOURTH_CHANNEL:
            continue
        integers = required_input(pad, 0)
        image.replace_input_with(0, integers)
        _describe(image.outputs[0], image.outputs[0], required_shape(integers))
        model.graph.remove(pad, safe=True)
        _set_weight(filters, required_constant(filters, 0)[:, :3])


def protect_float_layers(model: ir.Model) -> None:
    """Makes a layer with float weights read int8 tensors through equal scales, one for each channel, in place.

    With a single scale for the tensor, and a quantized output, ONNX Runtime (WeightBiasQuantization, from 1.21) would
    quantize the float weights itself, with one scale for the whole weight.
    """
    for node in list(model.graph):
        before = producer(node.inputs[0], "DequantizeLinear") if node.op_type in ("Conv", "Gemm") else None
        if before is None or constant(node.inputs[1]) is None:
            continue
        value = required_input(node, 0)
        shape = required_shape(value)
        # ONNX Runtime treats a scale of one element as a single scale for the tensor.
        axes = ((axis, size) for axis, size in enumerate(shape) if axis > 0 and isinstance(size, int) and size > 1)
        axis, size = next(axes, (None, 0))
        if axis is None:
            continue
        grid = [
            add_initializer(model, f"{node.name}_{part}", np.full(size, required_constant(before, index)))
            for index, part in enumerate(("scale", "zero_point"), 1)
        ]
        dequantize = ir.node(
            "DequantizeLinear", [before.inputs[0], *grid], {"axis": axis}, name=f"{node.name}/scale_a_channel"
        )
        _describe(dequantize.outputs[0], value, shape)
        model.graph.insert_before(node, dequantize)
        node.replace_input_with(0, dequantize.outputs[0])


def strip_descriptions(model: ir.Model) -> None:
    """Removes every doc string and metadata entry, in place: they hold stack traces and paths of the machine."""
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        _strip(value)
        if value.const_value is not None:
            _strip(value.const_value)
    for node in model.graph:
        _strip(node)
        for value in node.outputs:
            _strip(value)


def same_grid(first: ir.Node, second: ir.Node) -> bool:
    """Returns whether two quantize or dequantize nodes have equal scale and zero point."""
    pairs = [(constant(a), constant(b)) for a, b in zip(first.inputs[1:], second.inputs[1:], strict=True)]
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


def add_initializer(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    """Returns the initializer `name` of the file, and adds it with these values where there is none."""
    if name not in model.graph.initializers:
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(values, name=name)))
    return model.graph.initializers[name]


def replace_node(model: ir.Model, node: ir.Node, added: list[ir.Node]) -> None:
    """Replaces `node` by `added`, whose last node takes over its output."""
    old, new = node.outputs[0], added[-1].outputs[0]
    _describe(new, old, required_shape(old))
    new.name = old.name
    model.graph.insert_before(node, added)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _strip(thing: ir.Node | ir.Value | ir.TensorProtocol) -> None:
    thing.doc_string = None
    thing.metadata_props.clear()


def _is_spatial(node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = required_input(node, 0).shape
    return axes is not None and shape is not None and len(shape) == 4 and sorted(axes % 4) == [2, 3]


def _grid_after(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Returns scale and zero point of the QuantizeLinear that reads `value`; None where that is not the only reader."""
    readers = [usage.node for usage in value.uses()]
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        return required_input(readers[0], 1), required_input(readers[0], 2)
    return None


def _requantize(node: ir.Node, grid: tuple[ir.Value, ir.Value]) -> list[ir.Node]:
    """Returns nodes that quantize and dequantize the output of `node`, so that the runtime can fuse it."""
    value = node.outputs[0]
    quantize, dequantize = (
        ir.node(operator, [value, *grid], name=name_beside(node, operator))
        for operator in ("QuantizeLinear", "DequantizeLinear")
    )
    dequantize.replace_input_with(0, quantize.outputs[0])
    _describe(quantize.outputs[0], grid[1], required_shape(value))
    _describe(dequantize.outputs[0], value, required_shape(value))
    return [quantize, dequantize]


def _spatial_padding(node: ir.Node) -> list[int] | None:
    """Returns the padding that a node of `pad_integers` adds, as a Conv's `pads`; None for any other node."""
    if node.op_type != "Pad" or any(node.inputs[3:]) or producer(node.inputs[0], "QuantizeLinear") is None:
        return None
    counts = constant(node.inputs[1])
    if counts is None or counts.size != 8:
        return None
    pads = counts.tolist()
    if any(pads[:2] + pads[4:6]) or min(pads) < 0:
        return None
    return pads[2:4] + pads[6:8]


def _pads_zero(node: ir.Node) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    padding = constant(value)
    return padding is not None and not padding.any()


def _read_once(nodes: list[ir.Node]) -> bool:
    return all(len(node.outputs[0].uses()) == 1 for node in nodes)


def _slice_rows(node: ir.Node) -> list[np.ndarray] | None:
    """Returns starts, ends, axes and steps of a Slice; None where one is not constant."""
    found = [constant(value) for value in node.inputs[1:]]
    rows = [row for row in found if row is not None]
    if len(rows) < max(3, len(found)):
        return None
    return rows if len(rows) == 4 else [*rows, np.ones_like(rows[0])]


def _set_weight(dequantize: ir.Node, values: np.ndarray) -> None:
    stored = required_input(dequantize, 0)
    stored.const_value, stored.shape = ir.tensor(values, name=stored.name), ir.Shape(values.shape)
    dequantize.outputs[0].shape = ir.Shape(values.shape)


def _describe(value: ir.Value, like: ir.Value, shape: Iterable[int | ir.SymbolicDim]) -> None:
    """Sets the type of `value` to that of `like`, where that is known, and its shape."""
    if like.dtype is not None:
        value.dtype = like.dtype
    value.shape = ir.Shape(shape)
