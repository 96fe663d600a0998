"""The refit of networks that lost blocks or the rims of kernels, beside filters."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.methods.pruning.least_squares import least_squares_by_channel
from compress.methods.pruning.reconstruction import Reference, reconstruct
from compress.models.cifar_resnet import CifarResNet
from compress.models.sub_network import cut_kernels, replace_by_identities


def trained_alike(network: nn.Module, images: Tensor) -> nn.Module:
    """Gives batch norm the statistics of its inputs and scales of its own, as after training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth ones: of noise no layer could guess the pixels that it does not see."""
    return F.interpolate(torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0)), 16, mode="bilinear")


@pytest.fixture(scope="module")
def resnet(images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return trained_alike(CifarResNet(20, 3, 5), images)


@torch.no_grad()
def error(network: nn.Module, original: nn.Module, images: Tensor) -> float:
    return (network.eval()(images) - original(images)).square().mean().item()


def test_layers_behind_a_block_that_is_left_out_make_up_for_it(resnet: nn.Module, images: Tensor) -> None:
    cut = replace_by_identities(copy.deepcopy(resnet), ["layer1.1", "layer2.1"])
    before = error(cut, resnet, images)
    ends, every = copy.deepcopy(cut), copy.deepcopy(cut)
    refitted = reconstruct(ends, resnet, {}, images)
    ends_of = ("1.2", "2.0", "2.2", "3.0", "3.1", "3.2")
    outside = {"layer2.0.conv1", "layer3.0.conv1", "linear"}  # where the shape changes there is no shortcut
    assert refitted.keys() == {f"layer{block}.conv2" for block in ends_of} | outside
    all_refitted = reconstruct(every, resnet, {}, images, every=True)
    assert all_refitted.keys() == refitted.keys() | {f"layer{block}.conv1" for block in ends_of}
    assert error(every, resnet, images) < error(ends, resnet, images) < 0.5 * before


def test_a_reference_refits_as_the_original_does(resnet: nn.Module, images: Tensor) -> None:
    one = replace_by_identities(copy.deepcopy(resnet), ["layer2.1"])
    other = copy.deepcopy(one)
    outputs = Reference(resnet, images).refitted_outputs(one, {})
    reconstruct(other, resnet, {}, images)
    with torch.no_grad():
        assert torch.allclose(outputs, other(images), atol=1e-4)
        assert torch.allclose(outputs, one(images), atol=1e-4)


def test_nothing_is_refitted_where_nothing_is_left_out(resnet: nn.Module, images: Tensor) -> None:
    same = copy.deepcopy(resnet)
    assert reconstruct(same, resnet, {}, images, every=True) == {}
    assert error(same, resnet, images) < 1e-9


@pytest.mark.parametrize("groups", [1, 6])
def test_a_layer_with_a_smaller_kernel_is_refitted(images: Tensor, groups: int) -> None:
    torch.manual_seed(0)
    middle = nn.Conv2d(6, 6, 5, padding=2, groups=groups)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), middle, nn.BatchNorm2d(6), nn.ReLU())
    original = trained_alike(nn.Sequential(*network, nn.Flatten(), nn.Linear(6 * 256, 4)), images)
    cut = cut_kernels(copy.deepcopy(original), {"2": 3})
    before = error(cut, original, images)
    errors = reconstruct(cut, original, {}, images)
    assert list(errors) == ["2"]
    assert error(cut, original, images) < 0.8 * before


@pytest.mark.parametrize("bias", [True, False])
def test_a_depthwise_fit_finds_the_weights_that_made_the_targets(bias: bool) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=bias), torch.randn(40, 6, 9, 9)
    with torch.no_grad():
        targets = layer(images)
        fit = least_squares_by_channel(layer, list(images.split(16)), list(targets.split(16)), bias)
    assert torch.allclose(fit.weight.T.reshape(layer.weight.shape), layer.weight, atol=0.02)
    assert fit.residual_variance < 1e-3
    assert torch.allclose(fit.mean + fit.intercept, targets.mean((0, 2, 3)), atol=1e-3)
    assert torch.allclose(fit.variance, targets.var((0, 2, 3)), rtol=0.05)
    if not bias:
        assert not fit.intercept.any()
