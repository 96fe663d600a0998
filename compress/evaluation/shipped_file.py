"""Predicts and measures the size and the latency of the file that a run will ship, for networks of other widths."""

import copy
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from compress.evaluation.benchmark import time_and_memory
from compress.evaluation.energy_estimate import NO_CACHES, energy_cost
from compress.evaluation.flops import count_cost
from compress.evaluation.latency_table import FIXED_REMAINDER, LatencyTable, layer_shape, remainder_ms
from compress.export.file_outputs import FileOutputs
from compress.export.onnx import export_onnx
from compress.methods.pruning.cost import Cost, bytes_cost, macs_cost
from compress.methods.quantization.cpu_target import WEIGHT_BITS, choose_target
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.models.layer_calls import LayerCall
from compress.models.widths import read_widths
from compress.training.context import Shipping
from compress.utils.cpu import cache_bytes, cpu_flags
from compress.utils.errors import UserError

_CALIBRATION_IMAGES = 16  # ranges do not change the time: any will do


class ShippedFile:
    """The file as the last stage will write it, int8 or float, next to the teacher's file."""

    def __init__(self, teacher: nn.Module, images: Tensor, shipping: Shipping, outputs: FileOutputs):
        """Takes some of `images` (N, C, H, W) for the ranges of an int8 file."""
        self._teacher, self._images = teacher, images[:_CALIBRATION_IMAGES].cpu()
        self._shipping, self._outputs = shipping, outputs
        self._known: dict[nn.Module, dict[str, float]] = {}

    @property
    def teacher_latency_ms(self) -> float:
        """The median time of one image in the teacher's file."""
        figures = self.measure(self._teacher)
        return figures["latency_ms"] * figures["speedup"]

    def cost(
        self, name: str, network: nn.Module, calls: dict[str, list[LayerCall]], other: nn.Module | None = None
    ) -> Cost:
        """Returns a cost of the file of a network with other widths than `network`.

        "size_bytes" and "latency_ms" are predicted; their rest is what the file of `network`, which is written and
        measured, has more than its layers. "estimated_energy_mj" follows from the layers alone. `other` has the layers
        that may take the place of some of `network`; `calls` has the calls of both. Raises UserError for an energy on a
        machine whose caches are not known.
        """
        int8 = self._shipping.quantize is not None
        if name == "estimated_energy_mj":
            return self._energy_cost(network, calls, int8)
        whole = self.measure(network)
        if name == "size_bytes":
            return bytes_cost(network, whole["size_bytes"], int8, other)
        table = LatencyTable(self._shipping.latency_dir, "int8" if int8 else "float32", self._shipping.threads)
        return latency_cost(table, calls, read_widths(network), whole["latency_ms"])

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Writes the file of a network and returns its size_bytes, latency_ms and speedup over the teacher's file."""
        if network not in self._known:
            with tempfile.TemporaryDirectory() as folder:
                teacher, file = Path(folder) / "teacher.onnx", Path(folder) / "model.onnx"
                shape = tuple(self._images.shape[1:])
                teacher.write_bytes(self._teacher_file)
                export_onnx(self._as_shipped(network), file, shape, self._outputs)
                figures = time_and_memory(file, teacher, shape, self._shipping.measure, self._shipping.threads)
            self._known[network] = {
                "size_bytes": figures["size_bytes"],
                "latency_ms": figures["latency_ms_p50"],
                "speedup": figures["speedup_vs_teacher"],
            }
        return self._known[network]

    def _energy_cost(self, network: nn.Module, calls: dict[str, list[LayerCall]], int8: bool) -> Cost:
        caches = cache_bytes()
        if not caches:
            raise UserError(
                f"a target of estimated energy, while {NO_CACHES}", "a system that lists them", "set another target"
            )
        _, macs = count_cost(_on_cpu(network), tuple(self._images.shape[1:]))
        return energy_cost(calls, int8, caches, macs - macs_cost(calls).of(read_widths(network)))

    @cached_property
    def _teacher_file(self) -> bytes:
        """The content of the teacher's file, which every candidate is timed beside."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "teacher.onnx"
            export_onnx(_on_cpu(self._teacher), file, tuple(self._images.shape[1:]), self._outputs)
            return file.read_bytes()

    def _as_shipped(self, network: nn.Module) -> nn.Module:
        network, quantize = _on_cpu(network), self._shipping.quantize
        if quantize is None:
            return network
        bits = WEIGHT_BITS[choose_target(quantize.target, cpu_flags())]
        prepared = prepare(network, self._images[:1], bits, qat=False)
        calibrate(prepared, [self._images])
        return convert(prepared)


def latency_cost(
    table: LatencyTable, calls: dict[str, list[LayerCall]], whole: dict[str, list[int]], measured_ms: float
) -> Cost:
    """Returns the milliseconds of one image in a file that takes `measured_ms` with the widths `whole`.

    A part of what it takes beyond its layers, for sums, pooling and the runtime itself, goes down with their outputs.
    """
    elements = {name: sum(call.positions for call in layer) for name, layer in calls.items()}
    remainder = remainder_ms(table, calls, whole, measured_ms)
    each = (
        (1 - FIXED_REMAINDER)
        * remainder
        / sum(count * whole[name][0] for name, count in elements.items() if name in whole)
    )

    def of_layer(name: str, width: list[int]) -> float:
        layer = sum(table.layer_ms(layer_shape(call, width)) for call in calls.get(name, []))
        return layer + each * elements.get(name, 0) * width[0]

    def prepare(widths: Mapping[str, list[list[int]]]) -> None:
        table.require(
            layer_shape(call, width)
            for name, options in widths.items()
            for call in calls.get(name, [])
            for width in options
        )

    return Cost(of_layer, FIXED_REMAINDER * remainder, prepare)


def _on_cpu(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).cpu().eval()
