"""Estimates the energy of an image from its arithmetic and from the bytes that its layers move.

It is a model and no measurement: it leaves out the energy of instructions, of idle parts and of everything between the
layers, so that it can compare networks, but not predict what a battery gives. `compress.evaluation.energy` counts.

Each layer costs its multiply-accumulates, by precision, and one transfer of its weights, inputs and outputs from the
smallest memory that holds them all. The figures are those of M. Horowitz, "Computing's energy problem (and what we can
do about it)", ISSCC 2014, pp. 10-14, figure 1.1.9, "Rough energy costs for various operations in 45nm 0.9V":
https://doi.org/10.1109/ISSCC.2014.6757323, and as a copy https://gwern.net/doc/cs/hardware/2014-horowitz-2.pdf.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.export.onnx_ends import branch_depths
from compress.export.onnx_inspect import inspect_quantization
from compress.export.onnx_rewrites import channels_in_int8_file
from compress.export.onnx_shapes import layer_shapes
from compress.methods.pruning.cost import Cost
from compress.models.layer_calls import LayerCall
from compress.utils.cpu import CACHES
from compress.utils.missing import Unavailable

FLOAT_MAC_PJ = 3.7 + 0.9  # float32: multiply, add
INT8_MAC_PJ = 0.2 + 0.1  # multiply of 8 bits, add of 32

# A byte, an eighth of an access of 64 bits: of the nearest cache the figure for 32 KB; of the others that for 1 MB, the
# largest published; of DRAM, 1.3 to 2.6 nJ, the lower one, which is that of long reads (table 1 of EIE, Han et al.
# 2016, arXiv:1602.01528, has it as 640 pJ for 32 bits).
NEAREST_CACHE_PJ, OTHER_CACHE_PJ, DRAM_PJ = 20 / 8, 100 / 8, 1300 / 8

NO_CACHES = f"{CACHES} lists no cache with its size, on which the energy of a transfer depends"

_MJ_PER_PJ = 1e-9


@dataclass(frozen=True)
class LayerWork:
    """What a convolution or a matrix product does for one image."""

    macs: int
    elements: int  # of its weights, inputs and outputs
    int8: bool

    def energy_mj(self, caches: list[int]) -> float:
        """Returns its estimated energy; `caches` are the sizes in bytes, the nearest first."""
        moved = self.elements * (1 if self.int8 else 4)
        arithmetic = self.macs * (INT8_MAC_PJ if self.int8 else FLOAT_MAC_PJ)
        return _MJ_PER_PJ * (arithmetic + moved * _byte_pj(moved, caches))


def estimate_energy_mj(path: Path, caches: list[int], shares: Sequence[float] = (1.0,)) -> float | Unavailable:
    """Returns the estimated energy of one image in a file, from the layers that are in it and their precision.

    Of a file with several ends it is the mean, where `shares` of the images leave at each of them.
    """
    if not caches:
        return Unavailable(NO_CACHES)
    int8, depths = {layer.node: layer.quantized for layer in inspect_quantization(path)}, branch_depths(path)
    return math.fsum(
        sum(shares[depths[node] :]) * LayerWork(shapes.macs(), shapes.elements(), int8[node]).energy_mj(caches)
        for node, shapes in layer_shapes(path).items()
    )


def energy_cost(calls: dict[str, list[LayerCall]], int8: bool, caches: list[int], other_macs: float) -> Cost:
    """Returns the estimated energy, in mJ, of a file whose layers are all int8, or all float.

    `other_macs` are those outside of layers, as in attention, which no width changes and no int8 kernel runs.
    """

    def of_layer(name: str, width: list[int]) -> float:
        return math.fsum(layer_work(call, width, int8).energy_mj(caches) for call in calls.get(name, []))

    return Cost(of_layer, _MJ_PER_PJ * FLOAT_MAC_PJ * other_macs)


def layer_work(call: LayerCall, width: list[int], int8: bool) -> LayerWork:
    """Returns what a layer does in a call, with the channels of a width that `read_widths` returned."""
    out_channels, in_channels, groups = width if len(width) == 3 else (*width, 1)
    if int8 and not call.linear:
        in_channels = channels_in_int8_file(in_channels, groups)
    weights = math.prod(call.kernel) * out_channels * in_channels // groups
    elements = weights + math.prod(call.size) * in_channels + call.positions * out_channels
    return LayerWork(call.macs(out_channels, in_channels, groups), elements, int8)


def _byte_pj(working_set: int, caches: list[int]) -> float:
    """Returns the energy of a byte from the smallest memory that holds `working_set` bytes."""
    if working_set <= caches[0]:
        return NEAREST_CACHE_PJ
    return OTHER_CACHE_PJ if working_set <= max(caches) else DRAM_PJ
