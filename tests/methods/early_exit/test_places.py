"""Where exits may stand: only after modules without which nothing of the image reaches the logits."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.methods.early_exit.network import Exit, ExitShape
from compress.methods.early_exit.places import Place, Places
from compress.methods.early_exit.shapes import ends_macs, exit_macs, exit_shapes
from compress.models import Architecture, build
from compress.utils.errors import UserError

IMAGE = torch.zeros(1, 1, 8, 8)


class Winding(nn.Module):
    """A chain, a block with a shortcut of the image around it, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.twice, self.unused = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.image = nn.Conv2d(1, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.stem(x))
        y = self.twice(self.twice(y))
        y = self.inner(y) + self.image(x)
        return self.linear(self.last(y).mean((2, 3)))


def test_places_are_cuts_and_each_other_module_has_a_reason() -> None:
    places = Places(Winding(), IMAGE)
    assert [place.name for place in places.named(["last"])] == ["last"]
    for name, reason in {
        "stem": "other tensors pass it by",  # the image reaches the sum by another way
        "inner": "other tensors pass it by",
        "twice": "called more than once",
        "unused": "it is not called",
        "linear": "no map",
    }.items():
        with pytest.raises(UserError, match=f"with {name}: .*{reason}.*name some of last"):
            places.named(["last", name])
    with pytest.raises(UserError, match="with nope; expected modules of the network: stem, inner"):
        places.named(["nope"])


def test_a_network_without_a_cut_in_the_middle_is_refused_with_what_it_has() -> None:
    with pytest.raises(UserError, match=r"without a place near a third or two thirds of its MACs: last at \d+ %"):
        Places(Winding(), IMAGE).near_thirds()
    with pytest.raises(UserError, match=r"no module is one \(its output is no map"):
        Places(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGE).near_thirds()


def test_blocks_of_a_residual_network_are_places_and_their_layers_are_not() -> None:
    places = Places(build(Architecture("resnet20", "small", 1, 3)), IMAGE)
    assert [place.name for place in places.near_thirds()] == ["layer1", "layer2"]
    blocks = places.named(["layer2.1", "layer1.0", "layer3.0"])
    assert [place.name for place in blocks] == ["layer1.0", "layer2.1", "layer3.0"]  # in the order in which they run
    assert [place.shape for place in blocks] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert blocks[0].macs < blocks[1].macs < blocks[2].macs < places.macs
    with pytest.raises(UserError, match=r"layer1\.0\.conv1: other tensors pass it by"):
        places.named(["layer1.0.conv1"])


def test_the_network_is_left_as_it_was() -> None:
    network = build(Architecture("resnet8", "small", 1, 3)).train()
    network.linear.bias.requires_grad_(False)
    Places(network, IMAGE)
    assert network.training
    assert not network.linear.bias.requires_grad
    assert network.conv1.weight.requires_grad
    assert all(not module._forward_hooks for module in network.modules())


def test_macs_worked_out_by_hand() -> None:
    """Two 3x3 convolutions 1 -> 4 -> 4 on 8x8, and an exit of one convolution with stride 2 after the first."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)
    )
    places = Places(network, IMAGE)
    (first,) = places.named(["0"])
    assert first == Place("0", (4, 8, 8), 64 * 9 * 4)
    assert places.macs == 64 * 9 * 4 + 64 * 9 * 16 + 256 * 3
    (shape,) = exit_shapes([first], places.macs)
    assert shape == ExitShape("0", 4, 16, convolutions=1, stride=2, blocks=0)  # 16 channels are the least
    own = 16 * 9 * 4 * 16 + 16 * 3
    assert ends_macs([first], [shape], 3, places.macs) == [first.macs + own, places.macs + own]


def test_an_exit_is_as_wide_as_its_share_of_the_macs_allows() -> None:
    places = [Place("early", (16, 32, 32), 1), Place("late", (256, 8, 8), 1), Place("last", (512, 4, 4), 1)]
    early, late, last = exit_shapes(places, 125_000_000)
    assert early == ExitShape("early", 16, 64, convolutions=2, stride=2, blocks=1)
    assert late == ExitShape("late", 256, 128, convolutions=1, stride=2, blocks=0)
    assert last == ExitShape("last", 512, 128, convolutions=1, stride=1, blocks=0)
    for shape, place in zip((early, late, last), places, strict=True):
        network = Exit(shape, 10).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *place.shape))
        assert exit_macs(shape, place.shape[1:], 10) == counter.get_total_flops() // 2 <= 0.08 * 125_000_000
