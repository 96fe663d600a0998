"""OpenVINO: model.onnx as an IR of two files; of a quantized stage it runs the very integers of the ONNX file."""

import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from compress.export import TARGETS, Runner, Source

_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_INTEGERS = ("u8", "i8")


def export(source: Source) -> list[dict[str, str]]:
    """Writes model.xml and model.bin; the same model.onnx gives the same bytes.

    Weights keep their types: float32 is not stored as float16, which `save_model` would do.
    """
    openvino = _openvino()
    model = openvino.convert_model(source.onnx)
    for position, operation in enumerate(model.get_ordered_ops()):
        # OpenVINO numbers what it adds through the life of the process.
        if re.fullmatch(r"[A-Z]\w*_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{position}")
    path = source.folder / TARGETS["openvino"][0]
    openvino.save_model(model, path, compress_to_fp16=False)
    if source.calibration is None:
        return []
    reason = "OpenVINO runs it as {} on this CPU"
    precisions = executed_precisions(path, source.shape)
    return [
        {"layer": name, "reason": reason.format(found)} for name, found in precisions.items() if found not in _INTEGERS
    ]


def input_shape(shape: tuple[int, int, int]) -> list[int | str]:
    """Any number of images."""
    return ["N", *shape]


def open_runner(path: Path, threads: int) -> Runner:
    """The IR at `path`, compiled for the CPU and, as OpenVINO advises, for each number of images that comes."""
    compiled: dict[int, Any] = {}

    def run(images: np.ndarray) -> np.ndarray:
        if len(images) not in compiled:
            compiled[len(images)] = _compile(path, threads, images.shape)
        return compiled[len(images)]({"image": images})["logits"]

    return run


def executed_precisions(path: Path, shape: tuple[int, int, int]) -> dict[str, str]:
    """The input's type, u8 or f32 for example, with which OpenVINO runs each layer with weights, by its ONNX name."""
    notes = [operation.get_rt_info() for operation in _compile(path, 1, (1, *shape)).get_runtime_model().get_ops()]
    rows = [
        [note[name].astype(str) for name in ("layerType", "originalLayersNames", "runtimePrecision")] for note in notes
    ]
    return {name: precision for kind, name, precision in rows if kind in _LAYERS}


def _compile(path: Path, threads: int, shape: tuple[int, ...]) -> Any:
    """One request at a time on `threads` threads; float32 stays so where a CPU would rather take bfloat16."""
    model = _core().read_model(path)
    model.reshape(list(shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return _core().compile_model(model, "CPU", settings)


@cache
def _core() -> Any:
    """One core for the life of the process.

    Each core's CPU plugin maps a signal stack for AMX and, when it goes, brings back the one that it found: of two
    that overlap, the second brings back what the first has unmapped, and the next signal ends the process.
    """
    return _openvino().Core()


def _openvino() -> ModuleType:
    """OpenVINO without openvino_telemetry, which reports every import to a server and asks nobody."""
    # None makes Python raise ImportError for it, and OpenVINO then takes the stub that it has for its absence.
    cast("dict[str, ModuleType | None]", sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino
