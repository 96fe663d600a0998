"""The estimate is what one computes by hand; it falls with channels and bits, and a search predicts the file's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.config.schema import MeasureConfig
from compress.config.stage_settings import QuantizeConfig
from compress.evaluation.energy_estimate import (
    DRAM_PJ,
    NEAREST_CACHE_PJ,
    OTHER_CACHE_PJ,
    energy_cost,
    estimate_energy_mj,
    layer_work,
)
from compress.evaluation.shipped_file import ShippedFile
from compress.export.onnx import export_onnx
from compress.methods.pruning.cost import macs_cost
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.models.layer_calls import layer_calls
from compress.models.widths import read_widths
from compress.tasks import TASKS
from compress.training.context import Shipping
from compress.utils import cpu
from compress.utils.cpu import cache_bytes
from compress.utils.errors import UserError
from compress.utils.missing import Unavailable

SHAPE = (3, 8, 8)
IMAGE = torch.zeros(1, *SHAPE)
OUTPUTS = TASKS["classification"].files
# By hand, for one image. Each row: multiply-accumulates, and values of the weights, the input and the output.
CONV, DEPTHWISE, HEAD = (64 * 9 * 3 * 4, 108 + 192 + 256), (64 * 9 * 4, 36 + 256 + 256), (4 * 2, 8 + 4 + 2)
CONV_OF_FOUR = (64 * 9 * 4 * 4, 144 + 256 + 256)  # the image has a fourth channel in an int8 file


class Tiny(nn.Module):
    """A convolution, a depthwise one and a linear layer."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.conv(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The float file of `Tiny`, and its int8 file under True."""
    torch.manual_seed(0)
    folder, images = tmp_path_factory.mktemp("tiny"), torch.rand(4, *SHAPE)
    network = Tiny().eval()
    prepared = prepare(network, images[:1], 8, qat=False)
    calibrate(prepared, [images])
    paths = {False: folder / "float.onnx", True: folder / "int8.onnx"}
    export_onnx(network, paths[False], SHAPE, OUTPUTS)
    export_onnx(convert(prepared), paths[True], SHAPE, OUTPUTS)
    return paths


def by_hand(rows: list[tuple[int, int]], mac_pj: float, byte_pj: list[float], size: int) -> float:
    return 1e-9 * sum(macs * mac_pj + elements * size * pj for (macs, elements), pj in zip(rows, byte_pj, strict=True))


@pytest.mark.parametrize(
    ("caches", "byte_pj"),
    [
        ([4096, 65536], [NEAREST_CACHE_PJ] * 3),
        ([2200, 65536], [OTHER_CACHE_PJ, NEAREST_CACHE_PJ, NEAREST_CACHE_PJ]),  # the layers move 2224, 2192, 56 bytes
        ([64, 2192], [DRAM_PJ, OTHER_CACHE_PJ, NEAREST_CACHE_PJ]),
        ([64, 2192, 4096], [OTHER_CACHE_PJ, OTHER_CACHE_PJ, NEAREST_CACHE_PJ]),
    ],
)
def test_a_float_file_has_the_energy_computed_by_hand(
    files: dict[bool, Path], caches: list[int], byte_pj: list[float]
) -> None:
    wanted = by_hand([CONV, DEPTHWISE, HEAD], 4.6, byte_pj, 4)
    assert estimate_energy_mj(files[False], caches) == pytest.approx(wanted, rel=1e-9)


def test_an_int8_file_has_the_energy_computed_by_hand(files: dict[bool, Path]) -> None:
    wanted = by_hand([CONV_OF_FOUR, DEPTHWISE, HEAD], 0.3, [12.5, 2.5, 2.5], 1)  # 656, 548 and 14 bytes
    assert estimate_energy_mj(files[True], [600, 65536]) == pytest.approx(wanted, rel=1e-9)


def test_figures_are_those_of_the_published_table() -> None:
    """Horowitz 2014, figure 1.1.9: 64 bits from 32 KB take 20 pJ, from 1 MB 100 pJ, from DRAM at least 1.3 nJ."""
    assert (8 * NEAREST_CACHE_PJ, 8 * OTHER_CACHE_PJ, 8 * DRAM_PJ) == (20, 100, 1300)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("caches", [[256, 1024], [49152, 2097152]])
def test_a_search_predicts_the_estimate_of_the_file(files: dict[bool, Path], int8: bool, caches: list[int]) -> None:
    network = Tiny().eval()
    cost = energy_cost(layer_calls(network, IMAGE), int8, caches, 0)
    assert cost.of(read_widths(network)) == pytest.approx(estimate_energy_mj(files[int8], caches), rel=1e-9)


def test_int8_takes_less_than_float_and_fewer_channels_less_than_more() -> None:
    calls = layer_calls(Tiny().eval(), IMAGE)
    for caches in ([64, 128], [1024, 4096], [1 << 20, 1 << 25]):
        energies = {}
        for channels in range(1, 33):
            widths = read_widths(Tiny(channels))
            energies[channels] = [energy_cost(calls, int8, caches, 0).of(widths) for int8 in (False, True)]
        assert all(int8 < float32 for float32, int8 in energies.values())
        for fewer, more in zip(list(energies.values())[:-1], list(energies.values())[1:], strict=True):
            assert fewer[0] < more[0]
            assert fewer[1] < more[1]


def test_a_layer_that_is_called_twice_costs_twice() -> None:
    layer = nn.Linear(3, 3)
    calls = layer_calls(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 3))
    width = [3, 3]
    once = layer_work(calls["0"][0], width, False).energy_mj([64])
    assert energy_cost(calls, False, [64], 0).of_layer("0", width) == pytest.approx(2 * once)


class Attention(nn.Module):
    """A linear layer, and the product of its outputs with themselves: 4 x 4 x 8 multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(x[:, 0, :4])
        return tokens @ tokens.transpose(1, 2)


def shipped(quantize: QuantizeConfig | None) -> ShippedFile:
    return ShippedFile(nn.Identity(), torch.zeros(2, *SHAPE), Shipping(quantize, MeasureConfig(), 1, None), OUTPUTS)


@pytest.mark.parametrize("quantize", [None, QuantizeConfig()])
def test_a_limit_on_energy_counts_products_outside_of_layers(
    quantize: QuantizeConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.evaluation.shipped_file.cache_bytes", lambda: [49152])
    network = Attention().eval()
    calls = layer_calls(network, IMAGE)
    cost = shipped(quantize).cost("estimated_energy_mj", network, calls)
    layers = energy_cost(calls, quantize is not None, [49152], 0)
    assert macs_cost(calls).of(read_widths(network)) == 4 * 8 * 8
    assert cost.rest == pytest.approx(4.6e-9 * 4 * 4 * 8)
    assert cost.of(read_widths(network)) == pytest.approx(layers.of(read_widths(network)) + cost.rest)


def test_unknown_caches_leave_it_out_with_the_cause(files: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate_energy_mj(files[False], [])
    assert isinstance(found, Unavailable)
    assert f"{cpu.CACHES} lists no cache" in found.cause
    monkeypatch.setattr("compress.evaluation.shipped_file.cache_bytes", list)
    network = Tiny()
    with pytest.raises(UserError, match=r"estimated energy, while .* lists no cache"):
        shipped(None).cost("estimated_energy_mj", network, layer_calls(network, IMAGE))


def test_caches_are_those_of_data_and_the_nearest_comes_first(tmp_path: Path) -> None:
    rows = [("Unified", "2048K"), ("Data", "48K"), ("Instruction", "32K"), ("Unified", "266240K")]
    for at, (kind, size) in enumerate(rows):
        place = tmp_path / f"index{at}"
        place.mkdir()
        (place / "type").write_text(f"{kind}\n")
        (place / "size").write_text(f"{size}\n")
    (tmp_path / "index4").mkdir()  # of which the system states no size
    assert cache_bytes(tmp_path) == [49152, 2097152, 272629760]
    assert cache_bytes(tmp_path / "absent") == []
