"""Two tiny networks, float and int8, as what a target is made from, and the run of a tiny detector."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.export import Source
from compress.export.file_outputs import LOGITS
from compress.export.onnx import export_onnx
from compress.export.predict import Detector
from compress.methods.quantization.pt2e import calibrate, convert, prepare, without_rounding
from tests.export.tiny_detector import write_detector
from tests.methods.quantization.tiny_networks import Residual, conv_bn, settled

SHAPE = (3, 16, 16)


class Plain(nn.Module):
    """A convolution with batch norm, a depthwise one inside a residual block, a spatial mean, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 3, nn.ReLU(inplace=True), stride=2)
        self.depthwise = conv_bn(8, 8, 3, nn.ReLU6(inplace=True), groups=8)
        self.project, self.linear = conv_bn(8, 8, 1, nn.Identity()), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.linear((x + self.project(self.depthwise(x))).mean((2, 3)))


def need_extra(name: str) -> None:
    """Skips the tests of a target whose extra is not installed; without importing it, which is the target's to do."""
    if find_spec(name) is None:
        pytest.skip(f"the extra {name} is not installed", allow_module_level=True)


NETWORKS = {"plain": Plain, "residual": Residual}
MakeSource = Callable[[str, bool], Source]


@pytest.fixture(scope="session")
def images() -> Tensor:
    """(64, 3, 16, 16), seeded."""
    return torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def source(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """A network by name, float or int8, in a folder with its model.onnx; made once."""
    made: dict[tuple[str, bool], Source] = {}

    def make(name: str, int8: bool) -> Source:
        if (name, int8) not in made:
            folder = tmp_path_factory.mktemp(name)
            network = settled(NETWORKS[name](), images)
            deployed = network
            if int8:
                prepared = prepare(network, images[:1], weight_bits=7, qat=False)
                calibrate(prepared, images.split(32))
                network, deployed = without_rounding(prepared), convert(prepared)
            export_onnx(deployed, folder / "model.onnx", SHAPE)
            calibration = list(images.split(32)) if int8 else None
            made[name, int8] = Source(folder, folder / "model.onnx", network, calibration, SHAPE, LOGITS)
        return made[name, int8]

    return make


def onnx_logits(source: Source, images: Tensor) -> Tensor:
    """What ONNX Runtime makes of (N, C, H, W)."""
    session = onnxruntime.InferenceSession(str(source.onnx), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny detector's run."""
    return write_detector(tmp_path_factory.mktemp("boxes") / "run")


@pytest.fixture
def detector(run: Path) -> Detector:
    found = compress.load(run)
    assert isinstance(found, Detector)
    return found
