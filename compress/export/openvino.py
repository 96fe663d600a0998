"""Exports to OpenVINO: model.onnx as an IR of two files, with the same integers where the stage is quantized."""

import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import onnx

from compress.export import TARGETS, Runner, Source
from compress.export.onnx_branches import load_flat
from compress.utils.exit_names import EXIT_INDEX

_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_INTEGERS = ("u8", "i8")


def export(source: Source) -> list[dict[str, str]]:
    """Writes model.xml and model.bin; the same model.onnx gives the same bytes.

    Weights keep their types; by default `save_model` would store float32 as float16. Of a network with exits it
    computes all ends for every image.
    """
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as scratch_dir:
        model = openvino.convert_model(_without_branches(source.onnx, Path(scratch_dir)))
    for position, operation in enumerate(model.get_ordered_ops()):
        # OpenVINO counts the operations that it adds over the life of the process, so their names would differ.
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
    """Returns the shape that the IR takes: any number of images."""
    return ["N", *shape]


def open_runner(path: Path, threads: int) -> Runner:
    """Returns a runner of the IR at `path`, compiled anew for each number of images, as OpenVINO advises."""
    compiled: dict[int, Any] = {}

    def run(images: np.ndarray) -> list[np.ndarray]:
        if len(images) not in compiled:
            compiled[len(images)] = _compile(path, threads, images.shape)
        return list(compiled[len(images)]({"image": images}).values())

    return run


def executed_precisions(path: Path, shape: tuple[int, int, int]) -> dict[str, str]:
    """Returns the input type, e.g. u8 or f32, with which OpenVINO runs each layer with weights, by its ONNX name."""
    notes = [operation.get_rt_info() for operation in _compile(path, 1, (1, *shape)).get_runtime_model().get_ops()]
    rows = [
        [note[name].astype(str) for name in ("layerType", "originalLayersNames", "runtimePrecision")] for note in notes
    ]
    return {name: precision for kind, name, precision in rows if kind in _LAYERS}


def _without_branches(path: Path, folder: Path) -> Path:
    """Returns the file itself, or one in `folder` that has only the logits where images leave it early."""
    model = load_flat(path)
    outputs = [output for output in model.graph.output if output.name != EXIT_INDEX]
    if len(outputs) == len(model.graph.output):
        return path
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    flat = folder / path.name
    onnx.save(model, str(flat))
    return flat


def _compile(path: Path, threads: int, shape: tuple[int, ...]) -> Any:
    """Compiles for one request at a time on `threads` threads; float32 never becomes bfloat16."""
    model = _core().read_model(path)
    model.reshape(list(shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return _core().compile_model(model, "CPU", settings)


@cache
def _core() -> Any:
    """Returns the one core of this process.

    Each core's CPU plugin maps a signal stack for AMX and restores the previous one at its end. With two overlapping
    cores, the second restores the stack that the first has unmapped, and the next signal ends the process.
    """
    return _openvino().Core()


def _openvino() -> ModuleType:
    """Imports OpenVINO without openvino_telemetry, which reports every import to a server without asking."""
    # None makes its import fail, and OpenVINO then uses the stub that it has for that case.
    cast("dict[str, ModuleType | None]", sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino
