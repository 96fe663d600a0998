"""Builds the small ONNX files in which ONNX Runtime runs one layer several times, as it does in a whole file.

Needs no torch.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT32, INT8 = "float32", "int8"
IMAGE = "image"

_OPSET = 18  # as in the files of `compress.export.onnx`
_IMAGE_CHANNELS, _BLOCK = 4, 16  # at most, and of the layout of float convolutions
_SCALE = 0.02  # the time depends on no value
# Each copy has weights of its own, and a layer with large weights more copies: a network with such a layer reads so
# much between two images that its weights have left the cache. In MobileNetV2 the last layer took 3.5 times as long as
# in a file with two copies of it.
_COPIES, _COPIES_OF_LARGE, _LARGE_BYTES, _MEMORY_BYTES = 8, 16, 200_000, 256_000_000


@dataclass(frozen=True)
class LayerPoint:
    """A convolution or linear layer whose time is measured, with all that its time depends on."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: tuple[int, int]
    size: tuple[int, int]  # height and width of the input; (tokens, 1) of linear layers
    linear: bool
    out_channels: int
    in_channels: int
    groups: int

    def output_size(self) -> tuple[int, int]:
        """Returns height and width of the output."""
        top, left, bottom, right = self.padding
        height, width = (
            (size + padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                self.size, (top + bottom, left + right), self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    def copies(self, precision: str) -> int:
        """Returns how often the layer is in its file."""
        values = self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]
        weight_bytes = values * (1 if precision == INT8 else 4)
        copies = _COPIES_OF_LARGE if weight_bytes > _LARGE_BYTES else _COPIES
        return max(1, min(copies, _MEMORY_BYTES // weight_bytes))


def input_shape(point: LayerPoint) -> tuple[int, ...]:
    """Returns the shape of `IMAGE` in the files of this point."""
    return (point.size[0], point.in_channels) if point.linear else (1, 1, *point.size)


def timing_file(point: LayerPoint, precision: str, with_layer: bool) -> bytes:
    """Returns an ONNX file that runs the layer `point.copies(precision)` times.

    Without the layer it does all the rest: the time of the layer is the difference. Each copy is followed by a pooling
    that reads one position, for without a reader in its own layout ONNX Runtime would convert the whole output.
    """
    graph = _Graph(precision)
    count = point.copies(precision)
    image = graph.quantized(IMAGE)
    sources = [image] * count if point.linear else graph.stems(image, point, count)
    height, width = point.output_size() if with_layer else point.size
    for number, source in enumerate(sources):
        if point.linear:
            graph.read_row(graph.linear(source, point) if with_layer else source, number)
        else:
            result = graph.convolution(source, point) if with_layer else source
            graph.read_position(result, (height + number, width + number))
    shape = input_shape(point)
    inputs = [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in graph.outputs]
    proto = helper.make_graph(graph.nodes, "timing", inputs, outputs, graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    return model.SerializeToString()


class _Graph:
    """The nodes and constants of a file in the making; in int8 with explicit quantization, as in `compress.export`."""

    def __init__(self, precision: str):
        self.int8 = precision == INT8
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.outputs: list[str] = []
        self._random = np.random.default_rng(0)
        self._names = 0

    def convolution(self, source: str, point: LayerPoint) -> str:
        """Adds a convolution, in float with the ReLU that ONNX Runtime fuses; returns its output."""
        weight = (point.out_channels, point.in_channels // point.groups, *point.kernel)
        result = self._add(
            "Conv",
            [source, *self._parameters(weight)],
            kernel_shape=point.kernel,
            strides=point.stride,
            pads=point.padding,
            dilations=point.dilation,
            group=point.groups,
        )
        return self.quantized(result) if self.int8 else self._add("Relu", [result])

    def stems(self, image: str, point: LayerPoint, count: int) -> list[str]:
        """Adds convolutions whose outputs are the layer's inputs, in the layout that convolutions have among them.

        In float ONNX Runtime converts an input of fewer channels than a block before each layer. Such an input is
        therefore computed for each copy, unless it is an image, which needs no conversion.
        """
        stem = LayerPoint((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), point.size, False, point.in_channels, 1, 1)
        if _IMAGE_CHANNELS < point.in_channels < _BLOCK:
            return [self.convolution(image, stem) for _ in range(count)]
        return [self.convolution(image, stem)] * count

    def linear(self, source: str, point: LayerPoint) -> str:
        """Adds a linear layer; returns its output."""
        result = self._add("Gemm", [source, *self._parameters((point.out_channels, point.in_channels))], transB=1)
        return self.quantized(result)

    def read_position(self, source: str, stride: tuple[int, int]) -> None:
        """Adds a pooling that reads the first position; nodes with other strides are not merged into one."""
        self._output(self.quantized(self._add("MaxPool", [source], kernel_shape=(1, 1), strides=stride)))

    def read_row(self, source: str, number: int) -> None:
        """Adds a slice of one value; nodes with other numbers are not merged into one."""
        ends = [self._constant(np.array([value])) for value in (number, number + 1, 1)]
        self._output(self._add("Slice", [source, *ends]))

    def quantized(self, source: str) -> str:
        """Adds the pair of nodes that makes a tensor uint8; nothing in float."""
        if not self.int8:
            return source
        grid = [self._constant(np.float32(_SCALE)), self._constant(np.uint8(0))]
        return self._add("DequantizeLinear", [self._add("QuantizeLinear", [source, *grid]), *grid])

    def _parameters(self, weight: tuple[int, ...]) -> list[str]:
        """Adds a weight and a bias."""
        if not self.int8:
            values = self._random.random(weight, dtype=np.float32)
            return [self._constant(values), self._constant(np.ones(weight[0], np.float32))]
        integers = self._random.integers(-63, 64, weight, dtype=np.int8)
        bias = np.ones(weight[0], np.int32)
        return [
            self._per_channel(integers, np.full(weight[0], _SCALE, np.float32)),
            self._per_channel(bias, np.full(weight[0], _SCALE * _SCALE, np.float32)),
        ]

    def _per_channel(self, integers: np.ndarray, scales: np.ndarray) -> str:
        zeros = np.zeros(len(scales), integers.dtype)
        return self._add("DequantizeLinear", [self._constant(value) for value in (integers, scales, zeros)], axis=0)

    def _constant(self, value: np.ndarray | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), self._name()))
        return self.constants[-1].name

    def _add(self, operator: str, inputs: list[str], **attributes: int | tuple[int, ...]) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [self._name()], **attributes))
        return self.nodes[-1].output[0]

    def _output(self, name: str) -> None:
        self.outputs.append(name)

    def _name(self) -> str:
        self._names += 1
        return f"value_{self._names}"
