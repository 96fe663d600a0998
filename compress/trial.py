"""Takes a network through the stages untrained, so that one that cannot pass is known before hours of training."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from compress.config import Config
from compress.cpu import cpu_flags
from compress.data.splits import Data
from compress.errors import UserError
from compress.pruning.filters import Pruned, prune_filters
from compress.quantization.export import export_onnx
from compress.quantization.pt2e import calibrate, convert, prepare
from compress.quantization.target import WEIGHT_BITS, choose_target
from compress.stages.teacher import untrained

_CALIBRATION_IMAGES = 32  # enough for a graph

Found = TypeVar("Found")


def require_passage(config: Config, data: Data) -> None:
    """Prunes, exports and quantizes the teacher of `config` with its first weights, as far as the stages ask for it.

    Raises UserError with the cause where a stage could not do that with the trained one either.
    """
    torch.manual_seed(config.seed)
    network, architecture = untrained(config.teacher, data.shape, len(data.classes))
    network.eval()
    with tempfile.TemporaryDirectory() as place:
        try_export(network, data, Path(place, "teacher.onnx"), architecture.model)
        if "prune" in config.stages:
            try_pruning(network, config, data, architecture.model)
        replaced = "distill" in config.stages and config.distill.student
        if "quantize" in config.stages and not replaced:
            try_quantizing(network, config, data, Path(place, "int8.onnx"), architecture.model)


def try_export(network: nn.Module, data: Data, file: Path, model: str) -> None:
    """Writes the float file. Raises UserError where `network`, called `model`, cannot be exported."""
    _attempt(lambda: export_onnx(network, file, data.shape), model, "exported")


def try_pruning(network: nn.Module, config: Config, data: Data, model: str) -> Pruned:
    """Prunes `network` in place. Raises UserError where it cannot be."""
    image = torch.zeros(1, *data.shape)
    return _attempt(lambda: prune_filters(network, image, config.prune), model, "pruned")


def try_quantizing(network: nn.Module, config: Config, data: Data, file: Path, model: str) -> None:
    """Writes an int8 file, calibrated on few images. Raises UserError where `network` cannot be quantized."""
    _attempt(lambda: _write_int8(network, config, data, file), model, "quantized")


def _write_int8(network: nn.Module, config: Config, data: Data, file: Path) -> None:
    bits = WEIGHT_BITS[choose_target(config.quantize.target, cpu_flags())]
    prepared = prepare(network, torch.zeros(1, *data.shape), bits, qat=False)
    samples = data.train.take(_CALIBRATION_IMAGES, config.seed)
    calibrate(prepared, (images for images, _ in samples.batches()))
    export_onnx(convert(prepared), file, data.shape)


def _attempt(step: Callable[[], Found], model: str, done: str) -> Found:
    """What `step` returns; whatever a library raises there is the answer that was asked for, as a UserError."""
    try:
        return step()
    except UserError:
        raise
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise UserError(
            f"{model}, which cannot be {done}: {type(error).__name__}: {cause[0] if cause else ''}",
            "a network that torch.export and torch-pruning can trace",
            "take branches on values, and shapes that are no tensors, out of its forward pass",
        ) from error
