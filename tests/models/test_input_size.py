"""A network that resizes its input: what it computes, in which files, and for which networks that is refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.evaluation.flops import count_cost
from compress.evaluation.inference import onnx_runner
from compress.export import Source, load_target
from compress.export.file_outputs import LOGITS
from compress.export.onnx import export_onnx
from compress.models import Architecture, build
from compress.models.graph.fold_batch_norm import fold_batch_norm
from compress.models.input_size import resize_input, set_input_size
from compress.models.layer_calls import layer_calls
from compress.utils.errors import UserError
from tests.own_networks import GridDetector, Plain

SHAPE = (3, 16, 16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Plain(4, 3).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


def resized(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    network = copy.deepcopy(network)
    resize_input(network, torch.zeros(1, *SHAPE), size)
    return network


def bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_it_computes_what_the_network_does_on_resized_images(network: nn.Module, images: Tensor) -> None:
    for size in ((12, 12), (8, 8), (24, 24), (9, 10)):
        assert torch.equal(resized(network, size)(images), network(bilinear(images, size)))
    quarters = images.unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5))
    assert torch.allclose(resized(network, (3, 3))(images), network(bilinear(quarters, (3, 3))), atol=1e-6)


@pytest.mark.parametrize("side", [1, 3, 5, 7, 15])
def test_every_pixel_counts_however_small_the_input(network: nn.Module, side: int) -> None:
    set_input_size(network, SHAPE, (side, side))
    (hook,) = network._forward_pre_hooks.values()
    images = torch.ones(1, *SHAPE).requires_grad_()
    hook(network, (images,))[0].sum().backward()
    assert (images.grad > 0).all()


@torch.no_grad()
def test_layers_keep_their_names_and_the_size_of_the_data_changes_nothing(network: nn.Module, images: Tensor) -> None:
    small = resized(network, (8, 8))
    assert [name for name, _ in small.named_modules()] == [name for name, _ in network.named_modules()]
    again = resized(small, SHAPE[1:])
    assert not again._forward_pre_hooks
    assert torch.equal(again(images), network(images))
    assert torch.equal(resized(small, (12, 12))(images), resized(network, (12, 12))(images))  # the last one counts


@torch.no_grad()
def test_copies_and_copies_without_batch_norm_resize_too(network: nn.Module, images: Tensor) -> None:
    small = resized(network, (8, 8))
    folded = fold_batch_norm(small)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.allclose(folded(images), small(images), atol=1e-5)


def test_costs_are_those_of_the_new_size() -> None:
    network = build(Architecture("resnet8", "small", 3, 4))
    linear = 64 * 4
    whole = count_cost(network.eval(), (3, 32, 32))
    resize_input(network, torch.zeros(1, 3, 32, 32), (16, 16))
    small = count_cost(network, (3, 32, 32))
    assert small[0] == whole[0]
    assert small[1] - linear == (whole[1] - linear) // 4
    assert layer_calls(network, torch.zeros(1, 3, 32, 32))["conv1"][0].size == (16, 16)


@pytest.mark.parametrize("size", [(12, 12), (24, 20), (3, 3)])
@torch.no_grad()
def test_files_take_images_of_the_data_and_agree_with_torch(
    network: nn.Module, images: Tensor, size: tuple[int, int], tmp_path: Path
) -> None:
    small = resized(network, size)
    expected = small(images).numpy()
    file = tmp_path / "model.onnx"
    export_onnx(small, file, SHAPE)
    (found,) = onnx_runner(file, 1)(images.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    target = load_target("openvino")
    target.export(Source(tmp_path, file, small, None, SHAPE, LOGITS))
    (found,) = target.open_runner(tmp_path / "model.xml", 1)(images.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_detector_is_refused_and_stays_as_it_is() -> None:
    detector = GridDetector(3)
    with pytest.raises(UserError, match=r"GridDetector with an input of 16x16 pixels, which returns tuple .*data\.ima"):
        resize_input(detector, torch.zeros(1, 3, 32, 32), (16, 16))
    assert not detector._forward_pre_hooks


def test_a_size_that_the_network_does_not_accept_is_refused_and_the_one_before_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 4)).train()
    example = torch.zeros(1, *SHAPE)
    resize_input(network, example, (8, 8))
    with pytest.raises(UserError, match=r"Sequential with an input of 12x12 pixels: RuntimeError: .*multiplied"):
        resize_input(network, example, (12, 12))
    assert network(example).shape == (1, 4)
    assert network.training
