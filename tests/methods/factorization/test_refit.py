"""Factorized networks: full rank changes nothing, a refit is never worse on its images, and records rebuild them."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.evaluation.flops import count_cost
from compress.methods.factorization import refit
from compress.methods.factorization.factors import SPATIAL, TUCKER
from compress.methods.factorization.layers import Factors, factor_layers, rebuild_factorized
from compress.methods.factorization.ranks import FactorizableNetwork
from compress.methods.factorization.refit import decompose_layers, factorize_layers
from compress.models import Architecture, build
from compress.models.widths import read_widths
from tests.methods.pruning.networks import SHAPE, Network, chain, conv, pooled
from tests.methods.pruning.test_channel_groups import EXAMPLE
from tests.methods.pruning.test_sensitivity import images, settled

METHODS = [SPATIAL, TUCKER]


def resnet() -> nn.Module:
    return build(Architecture("resnet8", "small", 3, 5))


def strided() -> nn.Module:
    """Strides, dilation and uneven padding, each along one side of a factor."""
    return chain(
        nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.Conv2d(16, 16, (3, 5), padding=(2, 1), dilation=(2, 1), bias=False),
            nn.Conv2d(16, 16, 3, padding="same"),
        )
    )


def linear() -> nn.Module:
    return Network(
        lambda net, x: net.head(net.hidden(pooled(net.first(x))).relu()),
        first=conv(3, 32),
        hidden=nn.Linear(32, 40),
        head=nn.Linear(40, 32),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet, "strided": strided, "linear": linear}


def everywhere(network: nn.Module, share: float, method: str = SPATIAL) -> tuple[FactorizableNetwork, list[int]]:
    """The network's ranks, and a share of each."""
    factorizable = FactorizableNetwork(network, EXAMPLE, method, 2)
    return factorizable, [group.allowed(share * (group.channels - 2)) for group in factorizable.groups]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (1, 5), (5, 1)])
def test_full_rank_reproduces_a_layer(size: tuple[int, int], method: str) -> None:
    layer = nn.Conv2d(6, 8, size, stride=(2, 1), padding=(size[0] // 2, 0), dilation=(1, 2))
    network = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 6, 16, 16)
    wanted = network(x)
    kind = FactorizableNetwork(network, x[:1], method, 1).groups[0].kind
    ranks = (6, 8) if kind == TUCKER else (min(6 * size[0], 8 * size[1]),)
    for refitted in (False, True):
        copied = copy.deepcopy(network)
        if refitted:
            factorize_layers(copied, network, {"0": Factors(kind, ranks)}, x)
        else:
            decompose_layers(copied, {"0": Factors(kind, ranks)})
        torch.testing.assert_close(copied(x), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_and_parameters_are_those_of_the_factorized_network(name: str, method: str) -> None:
    network = settled(NETWORKS[name])
    params, macs = count_cost(network, SHAPE)
    for share in (0.3, 0.8):
        factorizable, left = everywhere(network, share, method)
        factorized = copy.deepcopy(network)
        decompose_layers(factorized, factorizable.factors(left))
        widths = factorizable.widths(left)
        assert widths == read_widths(factorized)
        counted = count_cost(factorized, SHAPE)
        assert (factorizable.params().of(widths), factorizable.macs(macs).of(widths)) == counted
        assert counted[1] < macs
        assert count_cost(network, SHAPE) == (params, macs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_rank_without_a_saving_stands_for_the_whole(name: str, method: str) -> None:
    network = settled(NETWORKS[name])
    whole = count_cost(network, SHAPE)[1]
    factorizable = FactorizableNetwork(network, EXAMPLE, method, 2)
    for group in factorizable.groups:
        factors = group.factors(group.channels - 2)
        assert factors is not None
        assert group.factors(group.channels) is None
        copied = copy.deepcopy(network)
        decompose_layers(copied, {group.layer: factors})
        assert count_cost(copied, SHAPE)[1] < whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_refit_comes_nearer_to_the_outputs_on_its_images(name: str, method: str) -> None:
    network = settled(NETWORKS[name])
    factorizable, left = everywhere(network, 0.5, method)
    chosen = factorizable.factors(left)
    plain, refitted = copy.deepcopy(network), copy.deepcopy(network)
    decompose_layers(plain, chosen)
    errors = factorize_layers(refitted, network, chosen, images())
    assert list(errors) == [group.layer for group in factorizable.groups]
    assert all(0 < error < 1 for error in errors.values())
    wanted = network(images())
    far, near = ((other(images()) - wanted).square().sum().item() for other in (plain, refitted))
    assert near < far


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_layers_error_is_no_larger_than_that_of_its_plain_factors(name: str) -> None:
    network = settled(NETWORKS[name])
    factorizable, left = everywhere(network, 0.5)
    layer = factorizable.groups[0].layer
    chosen = {layer: factorizable.factors(left)[layer]}
    after = layer.replace("conv", "bn") if name == "resnet" else layer
    found = {}
    for refits in (False, True):
        copied = copy.deepcopy(network)
        if refits:
            factorize_layers(copied, network, chosen, images())
        else:
            decompose_layers(copied, chosen)
        found[refits] = (value_at(copied, after) - value_at(network, after)).square().sum().item()
    assert found[True] <= found[False]


def value_at(network: nn.Module, name: str) -> Tensor:
    values: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda module, inputs, output: values.append(output))
    network(images())
    handle.remove()
    return values[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_record_rebuilds_the_network_exactly(method: str) -> None:
    network = settled(resnet)
    factorizable, left = everywhere(network, 0.5, method)
    chosen = factorizable.factors(left)
    factorized = copy.deepcopy(network)
    factorize_layers(factorized, network, chosen, images())
    rebuilt = rebuild_factorized(settled(resnet), {name: factors.record() for name, factors in chosen.items()})
    rebuilt.load_state_dict(factorized.state_dict())
    assert torch.equal(rebuilt(images()), factorized(images()))


def test_only_the_last_factor_has_a_bias() -> None:
    for bias in (False, True):
        for kind, ranks in ((SPATIAL, (4,)), (TUCKER, (4, 4))):
            layers = factor_layers(nn.Conv2d(8, 8, 3, bias=bias), Factors(kind, ranks))
            assert [part.bias is not None for part in layers] == [False] * (len(ranks)) + [bias]


def test_layers_without_a_gain_are_named() -> None:
    network = Network(
        lambda net, x: net.head(pooled(net.depthwise(net.twice(net.twice(net.first(x)))).relu())),
        first=conv(3, 16),
        twice=conv(16, 16),
        depthwise=conv(16, 16, groups=16),
        head=nn.Linear(16, 5),
    )
    left_out = FactorizableNetwork(network.eval(), EXAMPLE, SPATIAL, 8).left_out
    assert left_out["first"] == "no rank that is a multiple of 8 saves a MAC"
    assert left_out["twice"] == "it is called more than once"
    assert left_out["depthwise"].startswith("a convolution in groups")
    assert left_out.keys() == {"first", "twice", "depthwise", "head"}


def test_a_layer_whose_attributes_are_read_elsewhere_stays() -> None:
    network = Network(
        lambda net, x: net.last(net.first(x).relu()) * net.first.out_channels, first=conv(3, 32), last=conv(32, 32)
    )
    factorizable = FactorizableNetwork(network.eval(), EXAMPLE, SPATIAL, 2)
    assert factorizable.left_out["first"].startswith("the network does not run without it: AttributeError")
    assert [group.layer for group in factorizable.groups] == ["last"]


def test_a_tiny_last_layer_stays() -> None:
    small = Network(
        lambda net, x: net.head(pooled(net.last(net.first(x)))),
        first=conv(3, 64),
        last=conv(64, 64, 5),
        head=nn.Linear(64, 12),
    ).eval()
    assert "less than 1 %" in FactorizableNetwork(small, EXAMPLE, SPATIAL, 4).left_out["head"]
    wide = FactorizableNetwork(linear().eval(), EXAMPLE, SPATIAL, 4)
    assert [group.layer for group in wide.groups][-1] == "head"


def test_inner_channels_have_one_size_and_the_first_factor_a_length_of_one() -> None:
    network = settled(strided)
    factorizable, left = everywhere(network, 0.6)
    factorized = copy.deepcopy(network)
    factorize_layers(factorized, network, factorizable.factors(left), images())
    name = factorizable.groups[0].layer
    inner = value_at(factorized, f"{name}.0")
    sizes = inner.square().mean((0, 2, 3)).sqrt()
    assert sizes.max() / sizes.min() < 1.01
    lengths = factorized.get_submodule(f"{name}.0").weight.flatten(1).norm(dim=1)
    assert math.isclose(lengths.mean().item(), 1.0, rel_tol=1e-4)


def test_a_layer_with_too_many_inputs_is_decomposed_by_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "MOST_INPUTS", 31)
    network = settled(linear)
    factorizable, left = everywhere(network, 0.5)
    plain, fitted = copy.deepcopy(network), copy.deepcopy(network)
    decompose_layers(plain, {"hidden": factorizable.factors(left)["hidden"]})
    errors = factorize_layers(fitted, network, {"hidden": factorizable.factors(left)["hidden"]}, images())
    assert errors == {}
    assert torch.equal(fitted(images()), plain(images()))
