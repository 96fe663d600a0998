"""In every network of the zoo pruning takes a channel out of all layers that share it, and as many as are asked for."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config.stage_settings import PruneConfig
from compress.evaluation.flops import count_cost
from compress.methods.pruning.filters import Pruned
from compress.models import Architecture, build
from compress.models.widths import read_widths, set_widths
from tests.methods.pruning.plain_cut import prune_filters
from tests.zoo.conftest import NAMES, networks

SHAPE = (3, 16, 16)
EXAMPLE = torch.zeros(1, *SHAPE)
LOGITS = "its outputs are the logits"

# By the start of the name: what keeps filters, in words of the reasons, and the least that MACs must fall by where
# half of the filters of all other layers go. Where nothing is kept they fall by nearly four.
KEPT = {
    "shufflenet": ({"view"}, 1.9),
    "mobilevit": ({"reshape", "LayerNorm"}, 1.9),
    **{f"resnet{depth}": ({"zero-padded"}, 1.9) for depth in (8, 20, 32, 44, 56, 110)},
}
NOTHING = (set(), 3.4)


def with_batch_norm(network: nn.Module) -> nn.Module:
    """Batch norms that differ from channel to channel, and leave a channel of zeros as it is."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def masked(network: nn.Module, pruned: Pruned) -> nn.Module:
    """The whole network with zeros in place of the filters that were removed."""
    with torch.no_grad():
        for name, kept in pruned.kept.items():
            layer = network.get_submodule(name)
            gone = sorted(set(range(len(layer.weight))) - set(kept))
            layer.weight[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0
    return network


def assert_same_function(network: nn.Module, whole: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        found, wanted = network(images), whole(images)
    assert wanted.std() > 0
    torch.testing.assert_close(found / wanted.std(), wanted / wanted.std(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", networks(NAMES))
def test_half_of_the_filters_go_and_the_rest_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    original = with_batch_norm(build(Architecture(name, "small", 3, 10)))
    network, images = copy.deepcopy(original), torch.randn(2, *SHAPE)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=1))
    before, after = (read_widths(each) for each in (original, network))

    words, least = next((kept for start, kept in KEPT.items() if name.startswith(start)), NOTHING)
    reasons = {row["layer"]: row["reason"] for row in pruned.left_out}
    assert list(reasons.values()).count(LOGITS) == 1
    assert all(any(word in reason for word in words) for reason in reasons.values() if reason != LOGITS)
    layers = {layer for layer, width in before.items() if len(width) > 1}
    assert layers == set(reasons) | set(pruned.kept)
    assert all(after[layer][0] == before[layer][0] // 2 for layer in pruned.kept)
    assert least < count_cost(original, SHAPE)[1] / count_cost(network, SHAPE)[1] < 4.1

    rebuilt = build(Architecture(name, "small", 3, 10)).eval()
    set_widths(rebuilt, after)
    rebuilt.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(images), network(images))
    assert_same_function(network, masked(original, pruned), images)


class Structures(nn.Module):
    """What no network of the zoo has: groups of more than one channel, and batch norm behind a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.norm, self.last = nn.BatchNorm2d(64), nn.Conv2d(64, 16, 1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = torch.cat((x, self.grouped(x).relu()), 1)
        return self.linear(self.last(self.norm(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_groups_stay_equal_and_rounding_counts_whole_widths(scope: str, round_to: int) -> None:
    torch.manual_seed(0)
    original = with_batch_norm(Structures())
    network = copy.deepcopy(original)
    pruned = prune_filters(network, EXAMPLE, PruneConfig(ratio=0.5, round_to=round_to, scope=scope))
    widths = read_widths(network)
    assert widths["grouped"][2] == 4
    assert all(len(kept) % max(4, round_to) == 0 for layer, kept in pruned.kept.items() if layer != "last")
    if scope == "local":
        assert [widths[layer][0] for layer in ("first", "grouped", "last")] == [16, 16, 8]
        assert [row["layer"] for row in pruned.left_out] == ["linear"]
    assert_same_function(network, masked(original, pruned), torch.randn(2, *SHAPE))


def test_global_scope_cuts_no_path() -> None:
    """A layer in which one filter outweighs all others keeps a twentieth of them, where it would have kept that one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 40, 1), nn.Conv2d(40, 40, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(40, 5))
    with torch.no_grad():
        network[1].weight[1:] *= 1e-6
        network[4].weight[:, 1:] *= 1e-6
    pruned = prune_filters(network.eval(), EXAMPLE, PruneConfig(ratio=0.5, round_to=1, scope="global"))
    assert len(pruned.kept["1"]) == 2
    assert 0 in pruned.kept["1"]


class Counting(nn.Module):
    """An operator that torch-pruning would take for one that hands channels on: here they change places."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(F.relu(self.first(x)), 3, 1)
        return self.linear((self.second(x) * self.scale).mean((2, 3)))


def test_what_is_not_known_to_keep_channels_apart_is_left_alone_with_its_name() -> None:
    network = Counting().eval()
    reasons = {row["layer"]: row["reason"] for row in prune_filters(network, EXAMPLE, PruneConfig()).left_out}
    assert "roll" in reasons["first"]
    assert "mul" in reasons["second"]  # by a parameter, which no width is recorded of
    assert reasons["linear"] == LOGITS
