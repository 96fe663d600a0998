"""Costs that follow from widths alone are those of the network that is pruned, and of its file."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.evaluation.flops import count_cost
from compress.export.onnx import export_onnx
from compress.methods.pruning.cost import Cost, bytes_cost, macs_cost, params_cost
from compress.methods.pruning.limits import Whole
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.models import Architecture, build
from compress.models.layer_calls import layer_calls
from compress.models.widths import read_widths
from compress.tasks import TASKS
from tests.methods.pruning.networks import SHAPE
from tests.methods.pruning.test_channel_groups import BUILDS, prunable_of, random_left, random_scores
from tests.zoo.conftest import networks

OF_ZOO = networks(["resnet8", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg16_bn", "mobilevit_shallow"])


def assert_costs_agree(build_network: Callable[[], nn.Module]) -> None:
    prunable = prunable_of(build_network)
    params, macs = count_cost(prunable.network, SHAPE)
    whole = Whole(prunable.before, macs, params)
    of_params = params_cost(prunable.network)
    for seed in range(2):
        left = random_left(prunable, seed)
        network, _ = prunable.pruned_copy(left, random_scores(prunable))
        widths = prunable.widths(left)
        found = whole.costs(prunable, widths)
        wanted = count_cost(network, SHAPE)
        assert (found["params"], found["macs"]) == wanted
        assert of_params.of(widths) == wanted[0]
        assert (found["params_share"], found["macs_share"]) == (wanted[0] / params, wanted[1] / macs)


@pytest.mark.parametrize("build_network", BUILDS.values(), ids=BUILDS)
def test_macs_and_parameters_are_those_of_the_pruned_network(build_network: Callable[[], nn.Module]) -> None:
    assert_costs_agree(build_network)


@pytest.mark.parametrize("name", OF_ZOO)
def test_macs_and_parameters_are_those_of_a_network_of_the_zoo(name: str) -> None:
    assert_costs_agree(lambda: build(Architecture(name, "small", 3, 10)))


@pytest.mark.parametrize("name", networks(["resnet8", "mobilenet_v3_small"]))
def test_layers_have_all_macs_of_a_convolutional_network(name: str) -> None:
    prunable = prunable_of(lambda: build(Architecture(name, "small", 3, 10)))
    layers = macs_cost(layer_calls(prunable.network, prunable.example))
    assert layers.rest == 0
    assert layers.of(prunable.before) == count_cost(prunable.network, SHAPE)[1]


def test_a_layer_that_is_called_twice_costs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).relu())

    network = Twice().eval()
    assert macs_cost(layer_calls(network, torch.zeros(1, *SHAPE))).of(read_widths(network)) == 2 * 256 * 9 * 3 * 3


def test_a_cost_prepares_all_widths_before_it_is_asked_for_one() -> None:
    asked: list[str] = []

    def prepare(widths: dict[str, list[list[int]]]) -> None:
        asked.append(str(widths))

    def of_layer(name: str, width: list[int]) -> float:
        asked.append(name)
        return width[0]

    assert Cost(of_layer, 0.5, prepare).of({"a": [2, 3, 1], "b": [4]}) == 6.5
    assert asked == ["{'a': [[2, 3, 1]], 'b': [[4]]}", "a", "b"]


def file_bytes(network: nn.Module, file: Path, int8: bool) -> int:
    if int8:
        images = torch.rand(4, *SHAPE)
        prepared = prepare(network, images[:1], 8, qat=False)
        calibrate(prepared, [images])
        network = convert(prepared)
    export_onnx(network, file, SHAPE, TASKS["classification"].files)
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))


@pytest.mark.parametrize(
    ("name", "int8"),
    [("resnet8", False), ("resnet8", True), pytest.param("mobilenet_v3_small", True, marks=pytest.mark.long)],
)
def test_the_size_of_the_pruned_networks_file_is_predicted(name: str, int8: bool, tmp_path: Path) -> None:
    prunable = prunable_of(lambda: build(Architecture(name, "small", 3, 10)))
    before = file_bytes(copy.deepcopy(prunable.network), tmp_path / "whole", int8)
    cost = bytes_cost(prunable.network, before, int8)
    assert cost.of(prunable.before) == pytest.approx(before)
    left = [group.allowed(0.5 * group.channels) for group in prunable.groups]
    network, _ = prunable.pruned_copy(left, random_scores(prunable))
    found = file_bytes(network, tmp_path / "pruned", int8)
    assert found < 0.7 * before
    assert cost.of(prunable.widths(left)) == pytest.approx(found, rel=0.03)
