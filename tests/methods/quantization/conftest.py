"""Each tiny network is prepared, converted and exported once for all tests of this folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.export.onnx import export_onnx
from compress.methods.quantization.pt2e import calibrate, convert, prepare

from .tiny_networks import Mobile, Residual, Shuffle, settled

NETWORKS = {"residual": Residual, "mobile": Mobile, "shuffle": Shuffle}
SHAPE = (3, 16, 16)


@dataclass
class Quantized:
    """One network in all its forms."""

    network: nn.Module
    prepared: GraphModule
    converted: GraphModule
    path: Path


@pytest.fixture(scope="session")
def images() -> Tensor:
    """(64, 3, 16, 16), seeded."""
    return torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def run_onnx() -> Callable[[Path, Tensor], Tensor]:
    """Logits (N, classes) of an ONNX file for images (N, C, H, W)."""

    def run(path: Path, images: Tensor) -> Tensor:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])

    return run


@pytest.fixture(scope="session")
def quantized(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Quantized]:
    """A tiny network by name, after PTQ or prepared for QAT, with its file."""
    made: dict[tuple[str, bool], Quantized] = {}

    def make(name: str, qat: bool = False) -> Quantized:
        if (name, qat) not in made:
            network = settled(NETWORKS[name](), images)
            prepared = prepare(network, images[:1], weight_bits=7, qat=qat)
            calibrate(prepared, images.split(32))
            converted = convert(prepared)
            path = tmp_path_factory.mktemp(name) / "model.onnx"
            export_onnx(converted, path, SHAPE)
            made[name, qat] = Quantized(network, prepared, converted, path)
        return made[name, qat]

    return make
