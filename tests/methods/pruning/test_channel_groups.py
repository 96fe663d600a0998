"""Groups of channels: the widths that follow from how many stay are those that the pruned network has."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.models import Architecture, build
from compress.models.widths import read_widths
from tests.methods.pruning.networks import SHAPE, Network, conv, pooled
from tests.methods.pruning.test_sparsity import NETWORKS
from tests.methods.pruning.test_zoo import Structures
from tests.zoo.conftest import networks

EXAMPLE = torch.zeros(1, *SHAPE)
OF_ZOO = networks(["resnet8", "resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "vgg16_bn"])


def sum_of_concatenation() -> nn.Module:
    """One layer makes all channels of a sum, two others half of them each."""
    return Network(
        lambda net, x: net.head(pooled(net.whole(x) + torch.cat([net.one(x), net.other(x)], 1))),
        whole=conv(3, 16),
        one=conv(3, 8),
        other=conv(3, 8),
        head=nn.Linear(16, 5),
    )


BUILDS: dict[str, Callable[[], nn.Module]] = NETWORKS | {"structures": Structures, "sum": sum_of_concatenation}


def prunable_of(build_network: Callable[[], nn.Module], round_to: int = 1) -> PrunableNetwork:
    torch.manual_seed(0)
    return PrunableNetwork(build_network().eval(), EXAMPLE, round_to)


def random_left(prunable: PrunableNetwork, seed: int) -> list[int]:
    draws = random.Random(seed)
    return [group.allowed(draws.uniform(0.1, 1) * group.channels) for group in prunable.groups]


def random_scores(prunable: PrunableNetwork, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(group.channels, generator=generator) for group in prunable.groups]


def assert_widths_follow(make: Callable[[int], PrunableNetwork], seeds: range) -> None:
    for seed in seeds:
        prunable = make(seed)
        left = random_left(prunable, seed)
        assert prunable.widths([group.channels for group in prunable.groups]) == read_widths(prunable.network)
        predicted = prunable.widths(left)
        kept, refused = prunable.remove(prunable.lowest(left, random_scores(prunable)))
        assert refused == {}
        assert kept
        assert predicted == read_widths(prunable.network)


@pytest.mark.parametrize("build_network", BUILDS.values(), ids=BUILDS)
def test_widths_are_those_of_the_pruned_network(build_network: Callable[[], nn.Module]) -> None:
    assert_widths_follow(lambda seed: prunable_of(build_network, 1 + seed % 2), range(4))


@pytest.mark.parametrize("name", OF_ZOO)
def test_widths_are_those_of_a_pruned_network_of_the_zoo(name: str) -> None:
    make = lambda: build(Architecture(name, "small", 3, 10))
    assert_widths_follow(lambda seed: prunable_of(make, (1, 8)[seed % 2]), range(2))


@pytest.mark.parametrize("build_network", BUILDS.values(), ids=BUILDS)
def test_a_pruned_copy_is_what_remove_leaves_and_the_network_stays_whole(
    build_network: Callable[[], nn.Module],
) -> None:
    prunable = prunable_of(build_network)
    state, widths = copy.deepcopy(prunable.network.state_dict()), read_widths(prunable.network)
    images, scores = torch.randn(2, *SHAPE), random_scores(prunable)
    with torch.no_grad():
        outputs = prunable.network(images)
    for seed in range(3):
        left = random_left(prunable, seed)
        found, kept = prunable.pruned_copy(left, scores)
        assert read_widths(prunable.network) == widths
        assert all(torch.equal(value, state[name]) for name, value in prunable.network.state_dict().items())
        again = prunable_of(build_network)
        assert again.remove(again.lowest(left, scores))[0] == kept
        with torch.no_grad():
            assert torch.equal(prunable.network(images), outputs)
            assert torch.equal(found(images), again.network(images))
        assert not {id(value) for value in found.parameters()} & {id(value) for value in prunable.network.parameters()}


def test_what_the_network_does_not_run_without_is_no_group() -> None:
    """A number in the forward pass shows only when the network runs: no search may count on these channels."""
    prunable = prunable_of(
        lambda: Network(
            lambda net, x: net.head(pooled(net.second(net.first(x).relu()).view(len(x), 8, 16, 16))),
            first=conv(3, 8),
            second=conv(8, 8),
            head=nn.Linear(8, 5),
        )
    )
    assert [group.layers for group in prunable.groups] == [["first"]]
    assert "with fewer of them the network does not run: RuntimeError" in prunable.fixed["second"]
    assert read_widths(prunable.network) == prunable.before
    network, kept = prunable.pruned_copy([4], random_scores(prunable))
    assert list(kept) == ["first"]
    assert read_widths(network) == prunable.widths([4])


@pytest.mark.parametrize("round_to", [1, 3, 8])
@pytest.mark.parametrize("build_network", BUILDS.values(), ids=BUILDS)
def test_allowed_counts_are_multiples_of_the_step(build_network: Callable[[], nn.Module], round_to: int) -> None:
    prunable = prunable_of(build_network, round_to)
    for group in prunable.groups:
        assert group.step * group.parts % round_to == 0
        for tenths in range(10 * group.channels + 1):
            count = group.allowed(tenths / 10)
            assert 0 < count <= group.channels
            assert count % group.step == 0 or count == group.channels < group.step
            assert count <= max(tenths / 10, group.step, -(-group.channels // 20))


def test_a_twentieth_of_the_channels_stays() -> None:
    prunable = prunable_of(lambda: nn.Sequential(conv(3, 40), nn.Flatten(2), nn.Flatten(1), nn.Linear(40 * 256, 5)))
    (group,) = prunable.groups
    assert [group.allowed(left) for left in (0, 1, 2, 3.9, 40)] == [2, 2, 2, 3, 40]


def roles(name: str) -> dict[str, str]:
    prunable = prunable_of(lambda: build(Architecture(name, "small", 3, 10)))
    return {group.layers[0]: group.role() for group in prunable.groups}


def test_the_role_is_that_of_the_place_in_a_block() -> None:
    of_resnet = roles("resnet8")
    assert len({of_resnet[f"layer{stage}.0.conv1"] for stage in (1, 2, 3)}) == 1
    of_mobilenet = roles("mobilenet_v2")
    expanded = [role for layer, role in of_mobilenet.items() if layer.endswith("conv.0.0")]
    assert len(expanded) > 10
    with_depthwise = {role for role in expanded if role.count("Conv2d.False") or role.count("Conv2d.True")}
    assert len(with_depthwise) <= 2  # the first block has no expansion before its depthwise layer
    assert not set(of_resnet.values()) & set(of_mobilenet.values())


def test_isomorphic_groups_differ_from_those_with_a_depthwise_layer() -> None:
    """The channels of a chain and those of the same chain with a depthwise layer between have two roles."""
    prunable = prunable_of(
        lambda: nn.Sequential(
            conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8, groups=8), conv(8, 8), conv(8, 8, groups=8),
            conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip
    found = {group.layers[0]: group.role() for group in prunable.groups}
    assert found["0"] == found["1"]
    assert found["2"] == found["4"]
    assert len({found["0"], found["2"], found["6"]}) == 3


def test_frozen_parameters_stay_frozen() -> None:
    prunable = prunable_of(NETWORKS["residual"])
    prunable.network.first.requires_grad_(False)
    network, _ = prunable.pruned_copy(random_left(prunable, 0), random_scores(prunable))
    prunable.remove(prunable.lowest(random_left(prunable, 0), random_scores(prunable)))
    for each in (network, prunable.network):
        frozen = {name for name, value in each.named_parameters() if not value.requires_grad}
        assert frozen == {"first.weight", "first.bias"}
