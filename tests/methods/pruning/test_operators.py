"""Whatever a forward pass calls, pruning takes the right channels or names the operator; it never stumbles."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.filters import Pruned
from compress.models.widths import read_widths, set_widths
from tests.methods.pruning.networks import SHAPE, Network, chain, conv, pooled
from tests.methods.pruning.plain_cut import prune_filters

IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
SETTINGS = PruneConfig(ratio=0.5, round_to=1)


def pruned(network: nn.Module) -> tuple[nn.Module, Pruned, dict[str, str]]:
    """The pruned copy, and the reasons of the layers that kept their filters."""
    network = copy.deepcopy(network).eval()
    found = prune_filters(network, torch.zeros(1, *SHAPE), SETTINGS)
    return network, found, {row["layer"]: row["reason"] for row in found.left_out}


def assert_zeros_compute_the_same(network: nn.Module, narrow: nn.Module, found: Pruned) -> None:
    """The whole network with zeros in place of the lost filters, and one that is rebuilt from its widths."""
    whole = copy.deepcopy(network).eval()
    with torch.no_grad():
        for name, kept in found.kept.items():
            layer = whole.get_submodule(name)
            gone = sorted(set(range(len(layer.weight))) - set(kept))
            layer.weight[gone] = 0
            layer.bias[gone] = 0
        torch.testing.assert_close(narrow(IMAGES), whole(IMAGES), rtol=1e-4, atol=1e-5)
        rebuilt = copy.deepcopy(network).eval()
        set_widths(rebuilt, read_widths(narrow))
        rebuilt.load_state_dict(narrow.state_dict())
        assert torch.equal(rebuilt(IMAGES), narrow(IMAGES))


def squeeze_excite(net: Network, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    batch, channels, _, _ = x.size()
    gate = net.gate(F.adaptive_avg_pool2d(x, 1).view(batch, channels)).sigmoid().view(batch, channels, 1, 1)
    return net.head(torch.flatten(F.max_pool2d(net.b(x * gate.expand_as(x)), 4), 1))


def without_gradients(net: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.b(net.a(x).relu())
    return net.head(pooled(x))


def by_keyword(net: Network, x: Tensor) -> Tensor:
    x = F.max_pool2d(input=net.b(input=F.relu(input=net.a(input=x))), kernel_size=16)
    return net.head(torch.flatten(input=x, start_dim=1))


def gated(net: Network, x: Tensor) -> Tensor:
    return net.head(pooled(torch.where(IMAGES[:1, :1] > 0, net.a(x), torch.add(input=net.a(x), other=net.b(net.a(x))))))


HANDED_ON: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "keywords": by_keyword,
    "where": gated,
    "without gradients": without_gradients,
    "detach": lambda net, x: net.head(pooled(net.b(net.a(x).relu().detach()))),
    "data": lambda net, x: net.head(pooled(net.b(net.a(x).relu().data))),
    "planes": lambda net, x: net.head(net.b(F.pad(net.a(x), (1, 2))[..., 1:-2]).flatten(2).mean(-1)),
    "moved and back": lambda net, x: net.head(pooled(net.b((net.a(x).permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2)))),
    "squeezed": lambda net, x: net.head(net.b(net.a(x)).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
    "two heads": lambda net, x: (net.head(pooled(net.a(x))), net.head(pooled(net.b(net.a(x))))),
    "scalar": lambda net, x: net.head(pooled(net.b(net.a(x) * net.scale))),
}


@pytest.mark.parametrize("name", [name for name in HANDED_ON if name != "two heads"])
def test_known_operators_hand_channels_on(name: str) -> None:
    torch.manual_seed(0)
    network = Network(
        HANDED_ON[name], a=conv(3, 16), b=conv(16, 16), head=nn.Linear(16, 5), scale=nn.Parameter(torch.tensor(0.7))
    )
    narrow, found, reasons = pruned(network)
    assert set(reasons) == {"head"}
    assert_zeros_compute_the_same(network, narrow, found)


def test_a_gate_by_views_is_followed_together_with_a_flattened_head() -> None:
    torch.manual_seed(0)
    network = Network(squeeze_excite, a=conv(3, 16), b=conv(16, 16), gate=nn.Linear(16, 16), head=nn.Linear(16 * 16, 5))
    narrow, found, reasons = pruned(network)
    assert set(reasons) == {"head"}
    assert_zeros_compute_the_same(network, narrow, found)


def meshgrid(net: Network, x: Tensor) -> Tensor:
    y = net.a(x)
    axes = [torch.linspace(-1, 1, size) for size in y.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].expand(len(x), -1, -1, -1)
    return net.head(pooled(net.wide(torch.cat([grid, y], 1))))


def overwritten(net: Network, x: Tensor) -> Tensor:
    y = net.a(x).clone()
    y[:, :4] = 0
    return net.head(pooled(net.b(y)))


COUNTED: dict[str, tuple[str, Callable[[Network, Tensor], Tensor]]] = {
    "stack": ("stack", lambda net, x: net.head(pooled(torch.stack([net.a(x), net.a(x) * 2], 1).amax(1)))),
    "einsum": ("einsum", lambda net, x: net.head(torch.einsum("nchw,nchw->nc", net.a(x), net.b(net.a(x)).sigmoid()))),
    "meshgrid": ("cat with a tensor of fixed width", meshgrid),
    "setitem": ("setitem", overwritten),
    "comparison": ("gt", lambda net, x: net.head(pooled(net.b(net.a(x) * (net.a(x) > 0))))),
    "buffer": ("mul with a tensor of fixed width", lambda net, x: net.head(pooled(net.b(net.a(x) * net.buffer)))),
    "parameter": ("mul with a parameter", lambda net, x: net.head(pooled(net.b(net.a(x) * net.parameter)))),
    "channels last": ("flatten", lambda net, x: net.long(net.a(x)[..., :2, :2].permute(0, 2, 3, 1).flatten(1))),
    "complex numbers": ("rfft2", lambda net, x: net.head(pooled(net.b(torch.fft.irfft2(torch.fft.rfft2(net.a(x))))))),
    "maximum over channels": ("amax", lambda net, x: net.head(pooled(net.b(net.a(x) * net.a(x).amax(1, True))))),
    "softmax": ("softmax", lambda net, x: net.head(pooled(net.b(net.a(x).softmax(1))))),
}


@pytest.mark.parametrize("name", COUNTED)
def test_other_operators_are_named_and_what_is_left_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    word, forward = COUNTED[name]
    network = Network(
        forward, a=conv(3, 16), b=conv(16, 16), wide=conv(18, 16), head=nn.Linear(16, 5), long=nn.Linear(64, 5),
        buffer=torch.rand(1, 16, 1, 1), parameter=nn.Parameter(torch.rand(16, 1, 1)),
    )  # fmt: skip
    narrow, found, reasons = pruned(network)
    assert word in reasons["a"]
    assert_zeros_compute_the_same(network, narrow, found)


def test_a_shape_written_as_a_number_keeps_the_filters_in_front_of_it_and_no_others() -> None:
    torch.manual_seed(0)
    network = Network(
        lambda net, x: net.head(F.max_pool2d(net.b(net.a(x)), 4).view(-1, 256)),
        a=conv(3, 16), b=conv(16, 16), head=nn.Linear(256, 5),
    )  # fmt: skip
    narrow, found, reasons = pruned(network)
    assert set(found.kept) == {"a"}
    assert "does not run: RuntimeError: shape '[-1, 256]'" in reasons["b"]
    assert_zeros_compute_the_same(network, narrow, found)


def test_no_output_loses_classes() -> None:
    """Two heads, whose logits are put together: both keep their filters, not only the one that runs last."""
    torch.manual_seed(0)
    network = Network(
        lambda net, x: torch.cat([net.one(pooled(net.a(x))), net.other(pooled(net.a(x)))], 1),
        a=conv(3, 16), one=nn.Linear(16, 4), other=nn.Linear(16, 6),
    )  # fmt: skip
    narrow, _, reasons = pruned(network)
    assert set(reasons) == {"one", "other"}
    assert set(reasons.values()) == {"its outputs are the logits"}
    assert narrow(IMAGES).shape == (4, 10)


def test_layers_that_do_not_run_have_their_own_reason() -> None:
    network = chain(conv(16, 16))
    network.auxiliary = conv(16, 4)
    assert "not called" in pruned(network)[2]["auxiliary"]


def test_parts_of_a_grouped_convolutions_channels_stay_whole() -> None:
    torch.manual_seed(0)
    network = Network(
        lambda net, x: net.head(pooled(net.grouped(torch.cat([net.a(x), net.b(x)], 1)))),
        a=conv(3, 8), b=conv(3, 24), grouped=conv(32, 16, groups=4), head=nn.Linear(16, 5),
    )  # fmt: skip
    narrow, found, reasons = pruned(network)
    assert {"a", "b"} < set(reasons)
    assert "groups" in reasons["a"]
    assert_zeros_compute_the_same(network, narrow, found)


def test_convolutions_of_different_groups_in_a_row_are_cut_alike() -> None:
    torch.manual_seed(0)
    network = Network(
        lambda net, x: net.head(pooled(net.eight(net.four(net.a(x))))),
        a=conv(3, 24), four=conv(24, 24, groups=4), eight=conv(24, 24, groups=6), head=nn.Linear(24, 5),
    )  # fmt: skip
    narrow, found, _ = pruned(network)
    assert set(found.kept) == {"a", "four", "eight"}
    assert_zeros_compute_the_same(network, narrow, found)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_no_part_of_a_concatenation_that_is_gated_as_a_whole_loses_all(scope: str) -> None:
    torch.manual_seed(0)

    def forward(net: Network, x: Tensor) -> Tensor:
        both = torch.cat([net.a(x), net.b(x)], 1)
        return net.head(pooled(net.c(both * net.gate(both.mean((2, 3), keepdim=True)).sigmoid())))

    network = Network(
        forward, gate=conv(32, 32, 1), a=conv(3, 16), b=conv(3, 16), c=conv(32, 16), head=nn.Linear(16, 5)
    ).eval()  # fmt: skip
    with torch.no_grad():  # all of one part is next to nothing
        network.a.weight *= 1e-4
        network.c.weight[:, :16] *= 1e-4
        network.gate.weight[:16] *= 1e-4
        network.gate.weight[:, :16] *= 1e-4
    narrow = copy.deepcopy(network)
    found = prune_filters(narrow, torch.zeros(1, *SHAPE), PruneConfig(ratio=0.5, round_to=1, scope=scope))
    assert narrow.a.out_channels >= 1
    assert narrow.a.out_channels + narrow.b.out_channels == narrow.gate.out_channels
    if scope == "local":
        assert narrow.a.out_channels == narrow.b.out_channels == 8
    assert_zeros_compute_the_same(network, narrow, found)
