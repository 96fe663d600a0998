"""Pruning: filters are gone, the right ones, and what is left makes up for them."""

import copy

import pytest
import torch
from torch import nn

from compress.config.stage_settings import PruneConfig
from compress.evaluation.flops import count_cost
from compress.methods.pruning.reconstruction import reconstruct
from compress.models import Architecture, build
from compress.models.widths import read_widths, set_widths
from tests.methods.pruning.plain_cut import prune_filters
from tests.zoo.conftest import NAMES, networks

SHAPE = (1, 16, 16)
EXAMPLE = torch.zeros(1, *SHAPE)


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(Architecture(name, "small", 1, 5)).eval()


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v3_small"])
def test_ratio_zero_is_the_identity(name: str) -> None:
    network = network_of(name)
    before = copy.deepcopy(network.state_dict())
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.0))
    assert pruned.kept == {}
    assert {row["reason"] for row in pruned.left_out} >= {"prune.ratio is 0"}
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", networks([name for name in NAMES if name not in ("resnet56", "resnet18")]))
def test_filters_are_gone_and_every_other_layer_is_named(name: str) -> None:
    network = network_of(name)
    before, cost = read_widths(network), count_cost(network, SHAPE)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=4))
    after = read_widths(network)
    layers = [key for key, width in after.items() if len(width) > 1]
    named = {row["layer"] for row in pruned.left_out}
    assert {layer for layer in layers if after[layer][0] == before[layer][0]} == named
    assert all(row["reason"] for row in pruned.left_out)
    for layer, kept in pruned.kept.items():
        assert len(kept) == after[layer][0] < before[layer][0]
        assert after[layer][0] % 4 == 0
    # A layer between two pruned ones loses three quarters, one at a fixed width half.
    assert 1.8 < cost[1] / count_cost(network, SHAPE)[1] < 4.6
    assert network(EXAMPLE).shape == (1, 5)


def test_the_filters_with_the_smallest_l1_norm_go() -> None:
    network = network_of("resnet8")
    layer = network.layer1[0].conv1
    coupled = layer.weight.abs().sum((1, 2, 3)) + 0
    with torch.no_grad():  # the consumers of all filters alike: the producers alone decide
        network.layer1[0].conv2.weight.copy_(torch.ones_like(network.layer1[0].conv2.weight))
        network.layer1[0].bn1.weight.fill_(1)
    old = layer.weight.detach().clone()
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=1))
    kept = pruned.kept["layer1.0.conv1"]
    assert kept == sorted(coupled.topk(8).indices.tolist())
    assert torch.equal(network.layer1[0].conv1.weight, old[kept])


def test_shortcuts_that_are_padded_stay_whole() -> None:
    network = network_of("resnet8")
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=1))
    reasons = {row["layer"]: row["reason"] for row in pruned.left_out}
    assert set(reasons) == {"conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2", "linear"}
    assert "zero-padded" in reasons["layer2.0.conv2"]
    assert "logits" in reasons["linear"]


def test_global_scope_takes_the_share_over_all_layers() -> None:
    network = network_of("resnet8")
    with torch.no_grad():  # all but two of the first layer's filters are next to nothing
        network.layer1[0].conv1.weight[2:] *= 1e-3
        network.layer1[0].conv2.weight[:, 2:] *= 1e-3
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.4, round_to=1, scope="global"))
    widths = read_widths(network)
    assert pruned.kept["layer1.0.conv1"] == [0, 1]
    assert sum(widths[f"layer{k}.0.conv1"][0] for k in (1, 2, 3)) == pytest.approx(0.6 * (16 + 32 + 64), abs=2)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_a_pruned_network_is_rebuilt_from_its_widths_bit_for_bit(name: str) -> None:
    network = network_of(name)
    prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=4))
    again = network_of(name)
    set_widths(again, read_widths(network))
    again.load_state_dict(network.state_dict())
    image = torch.randn(3, *SHAPE)
    assert torch.equal(again(image), network(image))


def pruned_pair(name: str) -> tuple[nn.Module, nn.Module, dict, torch.Tensor]:
    original = network_of(name)
    torch.manual_seed(2)
    images = torch.randn(96, *SHAPE)
    with torch.no_grad():
        original.train()
        for _ in range(30):
            original(images)  # batch norm then knows its inputs
    original.eval()
    network = copy.deepcopy(original)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=4))
    return network, original, pruned.kept, images


def error(network: nn.Module, original: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = original.eval()(images)
        return ((network.eval()(images) - wanted).square().mean() / wanted.var(0).mean()).item()


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v3_small"])
def test_reconstruction_brings_the_logits_back(name: str) -> None:
    network, original, kept, images = pruned_pair(name)
    before = error(network, original, images[:64])
    figures = reconstruct(network, original, kept, images[:64])
    after = error(network, original, images[:64])
    assert after < 0.5 * before
    assert all(0 <= share <= 1.01 for share in figures.values())
    assert not any(module.training for module in network.modules())


def test_a_filter_without_length_is_refitted_to_finite_weights() -> None:
    original = network_of("resnet8")
    with torch.no_grad():
        original.layer1[0].conv2.weight[:3] = 0
    network, images = copy.deepcopy(original), torch.randn(32, *SHAPE)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=4))
    reconstruct(network, original, pruned.kept, images)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    block, old, seen = network.layer1[0], original.layer1[0], torch.ones(1, 8, 4, 4)
    with torch.no_grad():
        wanted = old.bn2(torch.zeros(1, 16, 4, 4))[:, :3]
        torch.testing.assert_close(block.bn2(block.conv2(seen))[:, :3], wanted, rtol=1e-3, atol=1e-3)


def test_reconstruction_leaves_a_whole_network_alone() -> None:
    """Nothing lost: nothing refitted, and batch norm's new statistics do not change what it computes."""
    original = network_of("resnet8")
    network = copy.deepcopy(original)
    images = torch.randn(32, *SHAPE)
    assert reconstruct(network, original, {}, images) == {}
    with torch.no_grad():
        torch.testing.assert_close(network(images), original(images), rtol=1e-4, atol=1e-4)


def test_dead_filters_are_made_up_for_exactly() -> None:
    """Filters that give nothing carry nothing: without them the refitted network computes the same."""
    original = network_of("resnet8")
    with torch.no_grad():
        for block in (original.layer1[0], original.layer2[0], original.layer3[0]):
            half = block.conv1.out_channels // 2
            for value in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
                value[:half] = 0
            block.conv2.weight[:, :half] = 0
    network = copy.deepcopy(original)
    images = torch.randn(64, *SHAPE)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=1))
    with torch.no_grad():
        torch.testing.assert_close(network(images), original(images), rtol=1e-4, atol=1e-5)
    figures = reconstruct(network, original, pruned.kept, images)
    assert max(figures.values()) < 0.01
    assert error(network, original, images) < 0.01


class LateShortcut(nn.Module):
    """A block whose shortcut's convolution runs after the main branch, as in torchvision's ResNets."""

    def __init__(self):
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1, 2)
        self.main = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        main = self.main(x)
        return self.linear((main + self.shortcut(x)).relu().mean((2, 3)))


def test_a_shortcut_that_runs_late_is_refitted_before_others_build_on_it() -> None:
    torch.manual_seed(0)
    original, images = LateShortcut().eval(), torch.randn(64, *SHAPE)
    network = copy.deepcopy(original)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=1))
    figures = reconstruct(network, original, pruned.kept, images)
    assert {"main.2", "shortcut", "linear"} <= set(figures)
    with torch.no_grad():
        wanted = original(images)
        squared = (network(images) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert squared.item() == pytest.approx(figures["linear"], rel=1e-3)
