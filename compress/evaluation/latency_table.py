"""Predicts the time of a network from a table of measured times of layers, which is filled only where needed."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import onnxruntime

from compress.evaluation.layer_timing import measure_layers
from compress.evaluation.layer_timing_model import INT8, LayerPoint
from compress.export.onnx_rewrites import channels_in_int8_file
from compress.models.layer_calls import LayerCall
from compress.utils.cores import cores
from compress.utils.cpu import cpu_name
from compress.utils.file_lock import lock_file
from compress.utils.files import digest_of, write_json
from compress.utils.other_load import OtherLoad

# ONNX Runtime's kernels work on blocks of 16 channels and values in fours: a convolution with 8 filters takes longer
# than one with 16, and one with 33 as long as one with 48. The times of channels with the same remainder lie on a line.
_BLOCK, _FOUR = 16, 4
_EXACT = 8  # channels below are measured as they are: they are mostly those of images

# So many cores too few still count as undisturbed. With a whole one too few, ResNet-56's int8 layers took 1.6 times as
# long on two threads on two cores, which is as long as on one, and the calls agreed well.
_ALLOWED_LOAD = 0.3
# The share of `remainder_ms` that pruning does not change; the rest goes down with the elements of the layers' outputs.
# Some of it is the image's conversion and the calls of nodes, some is sums and activations. With a third, the times of
# 28 pruned files of ResNet-56 and MobileNetV2, int8 and float, were predicted within 8 % on one thread; with none up to
# 10 % too low, with all of it up to 36 % too high.
FIXED_REMAINDER = 1 / 3

log = logging.getLogger("compress")


@dataclass(frozen=True)
class LayerShape:
    """A call of a layer with its channels."""

    call: LayerCall
    out_channels: int
    in_channels: int
    groups: int


class LatencyTable:
    """The milliseconds of layers in "int8" or "float32" files, on this CPU with `threads` threads, for one image.

    It is kept in `folder`, which processes may share, in a file for each CPU, number of threads, version of ONNX
    Runtime and precision; None keeps nothing.
    """

    def __init__(self, folder: Path | None, precision: str, threads: int):
        self.precision, self.threads = precision, threads
        self._facts = {
            "cpu": cpu_name(),
            "threads": threads,
            "onnxruntime": onnxruntime.__version__,
            "precision": precision,
        }
        self._path = None if folder is None else folder / f"{digest_of(self._facts)[:16]}.json"
        self._measured_ms = {} if self._path is None else self._read(self._path)
        self._disturbed: set[str] = set()
        self._known_ms: dict[LayerShape, float] = {}  # a search asks for the same ones again and again

    def layer_ms(self, shape: LayerShape) -> float:
        """Returns the time of a call, measured or interpolated. Raises RuntimeError where measuring fails."""
        if shape not in self._known_ms:
            self.require([shape])
            self._known_ms[shape] = sum(share * self._measured_ms[_key(point)] for point, share in self._points(shape))
        return self._known_ms[shape]

    def require(self, shapes: Iterable[LayerShape]) -> None:
        """Measures all points that these calls need and the table lacks, in one process, and saves them.

        What was measured while other programs used the same cores serves this table only, with a warning.
        """
        needed = {_key(point): point for shape in shapes for point, _ in self._points(shape)}
        missing = {key: point for key, point in needed.items() if key not in self._measured_ms}
        if not missing:
            return
        load = OtherLoad()
        times = measure_layers(list(missing.values()), self.precision, self.threads)
        others = load.cores()
        self._measured_ms |= dict(zip(missing, times, strict=True))
        if others + self.threads > cores() + _ALLOWED_LOAD:
            level = logging.DEBUG if self._disturbed else logging.WARNING  # a search measures hundreds of times
            self._disturbed |= set(missing)
            log.log(
                level,
                "other programs used %.1f of %d cores while %d layers were measured on %d threads: their times may be "
                "too long, and are not kept for other runs",
                others, cores(), len(missing), self.threads,
            )  # fmt: skip
        elif self._path is not None:
            self._save(self._path)

    def _points(self, shape: LayerShape) -> Iterator[tuple[LayerPoint, float]]:
        """Yields the points of the grid around a shape, with their shares in its time."""
        call = shape.call
        for (out_channels, in_channels, groups), share in _grid(shape):
            if self.precision == INT8 and not call.linear:
                in_channels = channels_in_int8_file(in_channels, groups)
            layer = (call.kernel, call.stride, call.padding, call.dilation, call.size, call.linear)
            yield LayerPoint(*layer, out_channels, in_channels, groups), share

    def _read(self, path: Path) -> dict[str, float]:
        """Returns the saved times; a file that is damaged is renamed, with a warning."""
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            _set_aside(path, str(error))
            return {}
        if not _is_table(record, self._facts):
            _set_aside(path, "it holds no times of layers, or those of another machine")
            return {}
        return record["milliseconds"]

    def _save(self, path: Path) -> None:
        """Adds the times to those that other processes have saved in the meantime."""
        try:
            with lock_file(path.parent, path.stem):
                own = {key: ms for key, ms in self._measured_ms.items() if key not in self._disturbed}
                saved = self._read(path) | own
                write_json(path, self._facts | {"milliseconds": saved})
                self._measured_ms = saved | self._measured_ms
        except OSError as error:
            log.warning("the measured times of layers are not kept: %s", error)


def network_ms(table: LatencyTable, calls: dict[str, list[LayerCall]], widths: dict[str, list[int]]) -> float:
    """Returns the sum of the times of a network's layers, of one image.

    `widths` is what `read_widths` returns; `calls` may have those of other layers, too. Raises RuntimeError where
    measuring fails.
    """
    shapes = [layer_shape(call, widths[name]) for name, layer in calls.items() if name in widths for call in layer]
    table.require(shapes)
    return sum(map(table.layer_ms, shapes))


def remainder_ms(
    table: LatencyTable, calls: dict[str, list[LayerCall]], widths: dict[str, list[int]], measured_ms: float
) -> float:
    """Returns what a network takes beyond its layers: sums, pooling, changes of layout and the runtime itself.

    It is negative where another program has disturbed the measuring of the layers, but not of `measured_ms`.
    """
    return measured_ms - network_ms(table, calls, widths)


def layer_shape(call: LayerCall, width: list[int]) -> LayerShape:
    """Returns a call with the channels of a width that `read_widths` returned."""
    out_channels, in_channels, groups = width if len(width) == 3 else (*width, 1)
    return LayerShape(call, out_channels, in_channels, groups)


def _grid(shape: LayerShape) -> list[tuple[tuple[int, int, int], float]]:
    """Returns the channels (out, in, groups) to measure, with their shares in the time: bilinear interpolation."""
    out_channels, in_channels, groups = shape.out_channels, shape.in_channels, shape.groups
    if groups == in_channels > 1:
        factor = out_channels // in_channels
        return [((factor * near, near, near), share) for near, share in _neighbours(in_channels)]
    if groups > 1:
        return [((out_channels, in_channels, groups), 1.0)]
    pairs = product(_neighbours(_representative(out_channels)), _neighbours(_representative(in_channels)))
    return [((out, into, 1), out_share * in_share) for (out, out_share), (into, in_share) in pairs]


def _representative(channels: int) -> int:
    """Returns the number that stands for those between two multiples of four, which all are slow alike."""
    if channels < _EXACT or channels % _FOUR == 0:
        return channels
    return channels - channels % _FOUR + _FOUR // 2


def _neighbours(channels: int) -> list[tuple[int, float]]:
    """Returns the numbers of channels between which is interpolated, with their shares.

    They have the same remainder of a block, and lie an eighth of the next power of two apart: up to 128 all are exact,
    and beyond the work changes by a quarter at most from one to the next.
    """
    remainder = channels % _BLOCK
    blocks = channels - remainder
    step = max(_BLOCK, 2 ** int(math.log2(max(1, blocks))) // 4)
    share = blocks % step / step
    low = blocks - blocks % step + remainder
    return [(low, 1.0)] if share == 0 else [(low, 1 - share), (low + step, share)]


def _key(point: LayerPoint) -> str:
    """Returns the name of a point in the file."""
    kernel, stride, padding, dilation, size = (
        "x".join(map(str, values)) for values in (point.kernel, point.stride, point.padding, point.dilation, point.size)
    )
    channels = f"channels {point.in_channels} to {point.out_channels} in {point.groups} groups"
    if point.linear:
        return f"linear, size {size}, {channels}"
    return f"convolution {kernel}, stride {stride}, padding {padding}, dilation {dilation}, size {size}, {channels}"


def _is_table(record: Any, facts: dict[str, Any]) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("milliseconds"), dict):
        return False
    numbers = all(isinstance(ms, float) and 0 <= ms < math.inf for ms in record["milliseconds"].values())
    return numbers and {name: value for name, value in record.items() if name != "milliseconds"} == facts


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(path.name + ".damaged")
    log.warning("%s is not used, and set aside as %s: %s; layers are measured anew", path, aside, reason)
    try:
        path.replace(aside)
    except OSError as error:
        log.warning("it could not be moved: %s", error)
