"""The runtimes besides ONNX Runtime for which a stage can be exported: each is a module here and an extra."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from compress.utils.errors import UserError

if TYPE_CHECKING:  # the measuring process imports this module, and must not load torch where its runtime does not
    from torch import Tensor, nn

    from compress.export.file_outputs import FileOutputs

# target -> its files; the runtime opens the first one. The module here, the extra and the package that it installs all
# have the target's name. The module has export(source), which writes the files and returns the skipped layers with
# reasons, input_shape(shape), which returns the shape that the file takes, and open_runner(path, threads).
TARGETS = {
    "executorch": ("model.pte",),
    "openvino": ("model.xml", "model.bin"),
}

Runner = Callable[[np.ndarray], list[np.ndarray]]  # images float32 (N, C, H, W) -> the file's outputs, in order


@dataclass
class Source:
    """What a target is exported from, and where its files go."""

    folder: Path
    onnx: Path  # model.onnx, float or with QuantizeLinear and DequantizeLinear
    network: "nn.Module"  # the float network, in eval mode; for a quantized stage, the network that was quantized
    calibration: "list[Tensor] | None"  # normalised batches (N, C, H, W) for the runtime's own int8; None: float
    shape: tuple[int, int, int]  # (C, H, W)
    outputs: "FileOutputs"  # those of model.onnx, which the target has too


def module_name(target: str) -> str:
    """Returns the full name of a target's module."""
    return f"compress.export.{target}"


def load_target(name: str) -> ModuleType:
    """Returns the module of a target, which imports its runtime only when it is called."""
    return importlib.import_module(module_name(name))


def require_installed(names: list[str]) -> None:
    """Raises UserError for a target whose package is not installed."""
    for name in names:
        if name in TARGETS and find_spec(name) is None:
            raise UserError(
                f"export.targets=[{','.join(names)}] without the package {name}",
                "the extra of each target installed",
                f'pip install "compress[{name}]", or leave {name} out',
            )
