"""The tiny float file that the measuring process is tried on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compress.config.schema import MeasureConfig
from compress.export.onnx import export_onnx
from compress.models import Architecture, build
from tests.conftest import real_measure

SHAPE = (1, 8, 8)
QUICK = MeasureConfig(batch_size=2, repetitions=3)


@pytest.fixture(scope="module", autouse=True)
def measuring_process() -> Iterator[None]:
    """The real one: it is what these tests are about."""
    with real_measure():
        yield


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model.onnx for images of `SHAPE` and three classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export_onnx(build(Architecture("resnet8", "small", 1, 3)).eval(), path, SHAPE)
    return path
