"""The runtimes besides ONNX Runtime that a stage can be written for, each a module here and an extra of the package."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from compress.utils.errors import UserError

if TYPE_CHECKING:  # the measuring process imports this, and must not hold torch where its runtime does not
    from torch import Tensor, nn

# A target's name is that of its module here, of its extra and of the package which that installs; its files, the one
# that the runtime opens first. A module has export(source), which writes them and returns the layers left out, with
# the reason; input_shape(shape), what the file takes; and open_runner(path, threads).
TARGETS = {
    "executorch": ("model.pte",),
    "openvino": ("model.xml", "model.bin"),
}

Runner = Callable[[np.ndarray], np.ndarray]  # images float32 (N, C, H, W) -> logits (N, K)


@dataclass
class Source:
    """What a target is made from, and where its files go."""

    folder: Path
    onnx: Path  # model.onnx, float or with QuantizeLinear and DequantizeLinear
    network: "nn.Module"  # the float network, in eval mode; of a quantized stage the one that was quantized
    calibration: "list[Tensor] | None"  # normalised batches (N, C, H, W) for a runtime's own int8; None: stay float
    shape: tuple[int, int, int]  # (C, H, W)


def module_name(target: str) -> str:
    """The full name of a target's module."""
    return f"compress.export.{target}"


def load_target(name: str) -> ModuleType:
    """The module of a target; it imports its runtime only when it is called."""
    return importlib.import_module(module_name(name))


def require_installed(names: list[str]) -> None:
    """Raises UserError for a target whose package is not there."""
    for name in names:
        if name in TARGETS and find_spec(name) is None:
            raise UserError(
                f"export.targets=[{','.join(names)}] without the package {name}",
                "the extra of each target installed",
                f'pip install "compress[{name}]", or leave {name} out',
            )
