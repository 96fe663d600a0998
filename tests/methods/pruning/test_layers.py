"""Layers that people really have: their padding, their norms, their weights, frozen or shared."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.least_squares import _solve_for_places, _solve_for_weights
from compress.methods.pruning.receptive import pixels, rows
from compress.methods.pruning.reconstruction import reconstruct, skipped_layers
from compress.models.widths import read_widths, set_widths
from tests.methods.pruning.networks import SHAPE, Network, chain, conv, pooled
from tests.methods.pruning.plain_cut import prune_filters
from tests.methods.pruning.test_operators import IMAGES, SETTINGS, assert_zeros_compute_the_same, pruned


def error(network: nn.Module, whole: nn.Module, images: Tensor) -> float:
    """The squared error as a share of the outputs' variance over the images."""
    with torch.no_grad():
        wanted, found = whole(images), network(images)
    return ((found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()).item()


def refit(network: nn.Module) -> tuple[float, float, nn.Module, list[dict[str, str]]]:
    """The error before and after the refit, the pruned network, and what was not refitted."""
    torch.manual_seed(2)
    images, narrow = torch.randn(64, *SHAPE), copy.deepcopy(network.eval())
    found = prune_filters(narrow, torch.zeros(1, *SHAPE), SETTINGS)
    before = error(narrow, network, images)
    reconstruct(narrow, network, found.kept, images)
    return before, error(narrow, network, images), narrow, skipped_layers(narrow, network, images[:1])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "same", "kernel_size": 4},
        {"padding": "same", "kernel_size": (2, 5), "dilation": (3, 1)},
        {"padding": "valid", "stride": 2},
        {"padding": (0, 2)},
        *({"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
        {"padding": "same", "kernel_size": 4, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_a_layer_sees_what_its_own_padding_adds(options: dict) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(6, 8, **{"kernel_size": 3, **options}), torch.randn(2, 6, 12, 11)
    with torch.no_grad():
        found = rows(layer, images) @ layer.weight.flatten(1).T + layer.bias
        torch.testing.assert_close(found, pixels(layer, layer(images)), rtol=1e-4, atol=1e-5)


class PaddedBefore(nn.Conv2d):
    """As TensorFlow pads, and timm: by the size of the image, inside the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def test_a_layer_of_ones_own_is_refitted_to_what_it_hands_to_its_convolution() -> None:
    torch.manual_seed(0)
    before, after, narrow, skipped = refit(chain(PaddedBefore(16, 16, 3, stride=2)))
    assert not skipped
    assert narrow.middle.in_channels == 8
    assert after < 0.5 * before


def tokens(net: Network, x: Tensor) -> Tensor:
    x = net.patches(x).flatten(2).transpose(1, 2)
    return net.head((x + net.narrow(F.gelu(net.wide(net.norm(x))))).mean(1))


def channels_last(net: Network, x: Tensor) -> Tensor:
    x = net.patches(x).permute(0, 2, 3, 1)
    x = (x + net.scale * net.narrow(F.gelu(net.wide(net.norm(x))))).permute(0, 3, 1, 2)
    return net.head(pooled(x))


def mixed_tokens(net: Network, x: Tensor) -> Tensor:
    x = net.patches(x).flatten(2)  # (N, C, T) with as many tokens as channels: the layers read the tokens
    return net.head((x + net.narrow(F.gelu(net.wide(x)))).mean(2))


@pytest.mark.parametrize("forward", [tokens, channels_last, mixed_tokens])
def test_linear_layers_have_their_channels_last(forward: Callable) -> None:
    torch.manual_seed(0)
    network = Network(
        forward, patches=nn.Conv2d(3, 16, 4, 4), norm=nn.LayerNorm(16), wide=nn.Linear(16, 40),
        narrow=nn.Linear(40, 16), scale=nn.Parameter(torch.full((16,), 0.5)), head=nn.Linear(16, 5),
    )  # fmt: skip
    before, after, narrow, skipped = refit(network)
    assert narrow.wide.out_features == narrow.narrow.in_features == 20
    assert not skipped
    assert after < 0.6 * before


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / spread, self.bias, self.stride, self.padding)


COMPUTED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "weight norm": ("WeightNorm", lambda: nn.utils.parametrizations.weight_norm(conv(16, 16))),
    "old weight norm": ("WeightNorm", lambda: nn.utils.weight_norm(conv(16, 16))),
    "spectral norm": ("SpectralNorm", lambda: nn.utils.parametrizations.spectral_norm(conv(16, 16))),
    "old spectral norm": ("SpectralNorm", lambda: nn.utils.spectral_norm(conv(16, 16))),
    "standardized": ("Standardized", lambda: Standardized(16, 16, 3, padding=1)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_layers_with_computed_weights_keep_their_filters_with_the_reason(name: str) -> None:
    torch.manual_seed(0)
    word, make = COMPUTED[name]
    network = chain(make()).eval()
    with torch.no_grad():
        network(IMAGES)  # old weight norm refuses a copy of a weight with a gradient
        wanted = network(IMAGES)
    found = prune_filters(network, torch.zeros(1, *SHAPE), SETTINGS)
    reasons = {row["layer"]: row["reason"] for row in found.left_out}
    assert set(found.kept) == {"last"}
    for layer in ("first", "middle"):
        assert "computed" in reasons[layer]
        assert word in reasons[layer]
    assert network(IMAGES).shape == wanted.shape


def test_a_weight_that_is_computed_outside_of_its_layer_is_left_alone() -> None:
    torch.manual_seed(0)
    network = chain(conv(16, 16))
    network.function = lambda net, x: net.head(pooled(net.last(F.conv2d(net.first(x), net.middle.weight * 2))))
    narrow, found, reasons = pruned(network)
    assert "outside of its layer" in reasons["first"] or "mul" in reasons["first"]
    assert "not called" in reasons["middle"]
    assert_zeros_compute_the_same(network, narrow, found)


NORMS: dict[str, tuple[bool, Callable[[], nn.Module]]] = {  # whether the convolution in front can be pruned
    "batch norm without affine": (True, lambda: nn.BatchNorm2d(16, affine=False)),
    "batch norm without statistics": (True, lambda: nn.BatchNorm2d(16, track_running_stats=False)),
    "batch norm without either": (True, lambda: nn.BatchNorm2d(16, affine=False, track_running_stats=False)),
    "instance norm": (True, lambda: nn.InstanceNorm2d(16)),
    "instance norm with affine": (True, lambda: nn.InstanceNorm2d(16, affine=True)),
    "instance norm with statistics": (False, lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True)),
    "group norm": (False, lambda: nn.GroupNorm(4, 16)),
    "group norm without affine": (False, lambda: nn.GroupNorm(4, 16, affine=False)),
    "PReLU": (True, lambda: nn.PReLU(16)),
    "PReLU of one slope": (True, lambda: nn.PReLU()),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_whose_tensors_are_none_are_pruned_and_refitted(name: str) -> None:
    torch.manual_seed(0)
    can, make = NORMS[name]
    network = chain(nn.Sequential(make(), conv(16, 16, bias=False), make()))
    before, after, narrow, _ = refit(network)
    assert (narrow.first.out_channels == 8) == can
    assert after < before
    rebuilt = copy.deepcopy(network)
    set_widths(rebuilt, read_widths(narrow))
    rebuilt.load_state_dict(narrow.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(IMAGES), narrow(IMAGES))


@pytest.mark.parametrize("frozen", ["all", "first", "head"])
def test_frozen_layers_are_pruned_as_the_others_and_stay_frozen(frozen: str) -> None:
    torch.manual_seed(0)
    network = chain(conv(16, 16))
    (network if frozen == "all" else network.get_submodule(frozen)).requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    narrow, found, reasons = pruned(network)
    assert set(reasons) == {"head"}
    assert_zeros_compute_the_same(network, narrow, found)
    rebuilt = copy.deepcopy(network)
    set_widths(rebuilt, read_widths(narrow))
    for each in (narrow, rebuilt):
        assert {name: parameter.requires_grad for name, parameter in each.named_parameters()} == wanted


def test_layers_that_share_a_weight_keep_their_filters_and_go_on_sharing() -> None:
    torch.manual_seed(0)
    network = chain(nn.Sequential(conv(16, 16), nn.ReLU(), conv(16, 16)))
    network.middle[2].weight = network.middle[0].weight
    narrow, found, reasons = pruned(network)
    assert set(found.kept) == {"last"}
    assert all("middle.0 and middle.2 share" in reasons[name] for name in ("first", "middle.0", "middle.2"))
    assert narrow.middle[2].weight is narrow.middle[0].weight
    assert_zeros_compute_the_same(network, narrow, found)


def test_a_layer_that_runs_twice_is_pruned_once_and_not_refitted() -> None:
    torch.manual_seed(0)
    network = chain(conv(16, 16))
    network.function = lambda net, x: net.head(pooled(net.last(net.middle(net.middle(net.first(x)).relu()))))
    narrow, found, _ = pruned(network)
    assert_zeros_compute_the_same(network, narrow, found)
    before, after, _, skipped = refit(network)
    assert [row["layer"] for row in skipped] == ["middle"]
    assert "more than once" in skipped[0]["reason"]
    assert after < before


def test_a_state_can_be_loaded_into_buffers_that_were_expanded() -> None:
    network = chain(conv(16, 16))
    network.register_buffer("grid", torch.linspace(-1, 1, 16).expand(1, 1, 16, 16))
    state = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    set_widths(network, {})
    network.load_state_dict(state)
    assert torch.equal(network.grid, state["grid"])


@pytest.mark.parametrize("intercept", [True, False])
def test_layers_with_more_inputs_than_places_have_the_same_solution(intercept: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randn(5, size, generator=generator) for size in (40, 3)) for _ in range(4)]
    found, wanted = _solve_for_places(pairs, intercept), _solve_for_weights(pairs, intercept)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_is_pruned_and_refitted() -> None:
    torch.manual_seed(0)
    network = chain(conv(16, 16)).bfloat16().eval()
    images, narrow = torch.randn(32, *SHAPE).bfloat16(), copy.deepcopy(network)
    found = prune_filters(narrow, images[:1], PruneConfig(ratio=0.5, round_to=1))
    before = error(narrow, network, images)
    reconstruct(narrow, network, found.kept, images)
    assert narrow.middle.weight.dtype == torch.bfloat16
    assert error(narrow, network, images) < before
