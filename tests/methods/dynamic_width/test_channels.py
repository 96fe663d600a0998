"""Narrower networks: each has the most important channels of the next one, and says where its weights come from."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from compress.methods.dynamic_width.channels import Narrower, narrower_networks
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.importance import score_channels
from compress.models import Architecture, build
from compress.models.widths import read_widths
from compress.utils.errors import UserError
from tests.methods.pruning.test_channel_groups import BUILDS, EXAMPLE
from tests.methods.pruning.test_sparsity import plain
from tests.zoo.conftest import networks


def cut(network: nn.Module, *shares: float, round_to: int = 1) -> list[Narrower]:
    return narrower_networks(network, EXAMPLE, shares, round_to, f"dynamic_width.widths={[*shares, 1.0]}")


def of_zoo(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(Architecture(name, "small", 3, 10)).eval()


def assert_places_are_right(network: nn.Module, *shares: float) -> None:
    """Every weight of a narrower network lies at its places in the whole, and those of less width are among them."""
    state, widths = copy.deepcopy(network.state_dict()), read_widths(network)
    whole = dict(network.named_parameters())
    found = cut(network, *shares)
    for narrow in found:
        named = dict(narrow.network.named_parameters())
        assert named.keys() == narrow.places.keys()
        for name, value in named.items():
            picked = whole[name]
            for dim, numbers in enumerate(narrow.places[name]):
                picked = picked.index_select(dim, numbers)
            assert torch.equal(picked, value), name
        assert sum(value.numel() for value in named.values()) < sum(value.numel() for value in whole.values())
    for less, more in itertools.pairwise(found):
        for name, places in less.places.items():
            assert all(set(own.tolist()) <= set(of.tolist()) for own, of in zip(places, more.places[name], strict=True))
    assert read_widths(network) == widths
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("build_network", BUILDS.values(), ids=BUILDS)
def test_weights_are_those_of_the_whole_at_their_places(build_network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert_places_are_right(build_network().eval(), 0.25, 0.5)


@pytest.mark.parametrize("name", networks(["resnet8", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"]))
def test_weights_of_the_zoo_are_those_of_the_whole_at_their_places(name: str) -> None:
    assert_places_are_right(of_zoo(name), 0.3, 0.6)


def test_the_most_important_channels_stay_in_multiples_of_a_number() -> None:
    torch.manual_seed(0)
    network = plain().eval()
    prunable = PrunableNetwork(network, EXAMPLE)
    scores = score_channels(prunable, "l1")
    (narrow,) = cut(network, 0.6, round_to=4)
    assert [narrow.network[at].weight.shape[0] for at in (0, 3, 8)] == [4, 8, 4]
    for group, score in zip(prunable.groups, scores, strict=True):
        rows = narrow.places[f"{group.layers[0]}.weight"][0]
        assert set(rows.tolist()) == set(score.topk(len(rows)).indices.tolist())


def test_frozen_parameters_stay_frozen() -> None:
    network = plain().eval()
    network[0].weight.requires_grad_(False)
    (narrow,) = cut(network, 0.5)
    assert not network[0].weight.requires_grad
    assert network[3].weight.requires_grad
    assert not narrow.network[0].weight.requires_grad


@pytest.mark.parametrize(
    ("network", "shares", "round_to", "why"),
    [
        (plain(), (0.5, 0.55), 8, "no layer has fewer channels at 0.5 than at the next width"),
        (plain(), (0.9,), 16, "no layer has fewer channels at 0.9 than at the next width"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), (0.5,), 1, "its outputs are the logits"),
    ],
)
def test_widths_that_no_layer_can_have_are_refused(
    network: nn.Module, shares: tuple[float, ...], round_to: int, why: str
) -> None:
    with pytest.raises(UserError, match="dynamic_width") as caught:
        cut(network.eval(), *shares, round_to=round_to)
    assert why in str(caught.value)
