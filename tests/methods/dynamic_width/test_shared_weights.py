"""Widths that share weights train one set of them, and become a network that computes the same and selects by image."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.methods.conditional.selection import set_choice
from compress.methods.dynamic_width.channels import narrower_networks
from compress.methods.dynamic_width.network import DynamicWidthNetwork, rebuild_dynamic_width
from compress.methods.dynamic_width.shared_weights import SharedWeights
from compress.models import Architecture, build
from compress.models.widths import read_widths
from compress.utils.exit_names import NEVER

IMAGES: Tensor = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def shared(seed: int = 0, widths: tuple[float, ...] = (0.25, 0.5)) -> tuple[SharedWeights, list[nn.Module]]:
    """ResNet-8 at three widths, and copies of its networks that share nothing."""
    torch.manual_seed(seed)
    network = build(Architecture("resnet8", "small", 1, 3)).eval()
    narrower = narrower_networks(network, IMAGES[:1], widths, 1, "dynamic_width.widths")
    copies = copy.deepcopy([*(narrow.network for narrow in narrower), network])
    return SharedWeights(network, narrower), copies


def separate(seed: int = 0) -> DynamicWidthNetwork:
    return shared(seed)[0].separate().eval()


def test_all_widths_compute_what_they_would_alone() -> None:
    network, copies = shared()
    for found, alone in zip(network.train()(IMAGES), copies, strict=True):
        torch.testing.assert_close(found, alone.train()(IMAGES))


def test_gradients_of_all_widths_add_up_in_the_widest() -> None:
    network, copies = shared()
    places = [narrow.places for narrow in _narrower_of(copies[-1])]
    sum(logits.square().sum() for logits in network.train()(IMAGES)).backward()
    for alone in copies:
        alone.train()(IMAGES).square().sum().backward()
    *narrower, whole = copies
    for name, value in network.network.named_parameters():
        wanted = whole.get_parameter(name).grad.clone()
        if "bn" not in name:
            for alone, at in zip(narrower, places, strict=True):
                _add_at(wanted, at[name], alone.get_parameter(name).grad)
        torch.testing.assert_close(value.grad, wanted)
    for alone, own in zip(narrower, network.narrower, strict=True):
        found = dict(own.named_parameters())
        assert found
        assert all("bn" in name for name in found)
        for name, value in found.items():
            torch.testing.assert_close(value.grad, alone.get_parameter(name).grad)


def _narrower_of(network: nn.Module) -> list:
    return narrower_networks(network.eval(), IMAGES[:1], (0.25, 0.5), 1, "dynamic_width.widths")


def _add_at(total: Tensor, places: tuple[Tensor, ...], part: Tensor) -> None:
    total[torch.meshgrid(*places, indexing="ij")] += part


def test_the_state_has_each_shared_weight_once_and_each_norm_for_its_width() -> None:
    network, _ = shared()
    names = set(network.state_dict())
    assert {name for name in names if name.startswith("network.")} == {
        f"network.{name}" for name in network.network.state_dict()
    }
    assert {name.partition(".")[2].partition(".")[2] for name in names if name.startswith("narrower.0.")} == {
        name for name in network.network.state_dict() if "bn" in name
    }
    other, _ = shared(seed=1)
    other.load_state_dict(network.state_dict())
    # Each network picks its own places; those of two random networks differ.
    torch.testing.assert_close(other.eval().network(IMAGES), network.eval().network(IMAGES))


@torch.no_grad()
def test_separate_weights_compute_the_same_after_a_training_step() -> None:
    network, _ = shared()
    with torch.enable_grad():
        sum(logits.square().mean() for logits in network.train()(IMAGES)).backward()
    for value in network.parameters():
        value -= 0.1 * value.grad
    before = network.train()(IMAGES)
    selected = network.eval()(IMAGES)
    made = network.separate()
    assert torch.equal(made.eval()(IMAGES), selected)
    for found, wanted in zip(made.train()(IMAGES), before, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    pointers = [value.data_ptr() for value in made.parameters()]
    assert len(set(pointers)) == len(pointers)
    assert all(value.is_leaf and value.requires_grad for value in made.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("thresholds", "end"), [([0.0, 0.0], 0), ([NEVER, 0.0], 1), ([NEVER, NEVER], 2)])
def test_thresholds_decide_at_which_width_an_image_ends(thresholds: list[float], end: int) -> None:
    network = separate()
    set_choice(network, [1.0, 1.0], thresholds)
    assert torch.equal(network(IMAGES), network.ends(IMAGES)[end])
    assert torch.equal(network.ends(IMAGES)[-1], network.network(IMAGES))


@torch.no_grad()
def test_it_is_rebuilt_from_widths_and_state() -> None:
    network = separate()
    set_choice(network, [0.5, 2.0], [0.4, 0.38])
    channels = [read_widths(narrow) for narrow in network.narrower]
    other = rebuild_dynamic_width(build(Architecture("resnet8", "small", 1, 3)), channels)
    assert other.state_dict().keys() == network.state_dict().keys()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(IMAGES), network(IMAGES))
