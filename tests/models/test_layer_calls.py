"""The calls of layers: their shapes and MACs are those of what the network runs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.evaluation.flops import count_cost
from compress.models import Architecture, build
from compress.models.layer_calls import LayerCall, layer_calls
from compress.models.widths import read_widths
from tests.methods.pruning.networks import SHAPE, Network, conv, pooled
from tests.zoo.conftest import networks

IMAGE = torch.zeros(1, *SHAPE)


def macs(network: nn.Module) -> int:
    widths = read_widths(network)
    return sum(
        call.macs(widths[name][0], widths[name][1], (*widths[name], 1)[2])
        for name, calls in layer_calls(network, IMAGE).items()
        for call in calls
    )


def only_call(
    layer: nn.Module, forward: Callable[[Network, Tensor], Tensor] = lambda net, x: net.layer(x)
) -> LayerCall:
    network = Network(forward, layer=layer).eval()
    (call,) = layer_calls(network, IMAGE)["layer"]
    assert macs(network) == count_cost(network, SHAPE)[1]
    return call


@pytest.mark.parametrize("name", networks(["resnet8", "mobilenet_v3_small", "squeezenet1_1", "vgg16_bn"]))
def test_macs_are_those_of_a_network_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    network = build(Architecture(name, "small", 3, 5)).eval()
    assert macs(network) == count_cost(network, SHAPE)[1]


def test_a_convolution_has_its_geometry_without_its_channels() -> None:
    call = only_call(nn.Conv2d(3, 12, (3, 5), (1, 2), (0, 2), (2, 1), groups=3))
    assert call == LayerCall((3, 5), (1, 2), (0, 2, 0, 2), (2, 1), (16, 16), 12 * 8, False)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # of torch: an even size needs a padded copy
@pytest.mark.parametrize("size", [1, 2, 3, (4, 5)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_same_padding_is_what_torch_pads(size: int | tuple[int, int], dilation: int) -> None:
    layer = nn.Conv2d(3, 4, size, padding="same", dilation=dilation)
    call = only_call(layer)
    top, left, bottom, right = call.padding
    x = torch.randn(2, *SHAPE)
    padded = F.pad(x, (left, right, top, bottom))
    with torch.no_grad():
        wanted = F.conv2d(padded, layer.weight, layer.bias, dilation=dilation)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    assert call.positions == 256


def test_valid_padding_is_none() -> None:
    call = only_call(nn.Conv2d(3, 4, 3, padding="valid"))
    assert (call.padding, call.positions) == ((0, 0, 0, 0), 14 * 14)


def test_a_call_by_keyword_counts() -> None:
    assert only_call(conv(3, 4), lambda net, x: net.layer(input=x)) == only_call(conv(3, 4))


def test_each_of_several_calls_counts() -> None:
    network = Network(lambda net, x: net.layer(F.avg_pool2d(net.layer(x), 2)), layer=conv(3, 3)).eval()
    calls = layer_calls(network, IMAGE)["layer"]
    assert [(call.size, call.positions) for call in calls] == [((16, 16), 256), ((8, 8), 64)]
    assert macs(network) == count_cost(network, SHAPE)[1]


def test_a_linear_layer_runs_on_tokens() -> None:
    tokens = only_call(nn.Linear(3, 7), lambda net, x: net.layer(x.flatten(2).transpose(1, 2)))
    assert tokens == LayerCall((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (256, 1), 256, True)
    assert only_call(nn.Linear(3, 7), lambda net, x: net.layer(pooled(x))).positions == 1
    assert only_call(nn.Linear(3, 7), lambda net, x: net.layer(x.permute(0, 2, 3, 1))).positions == 256


def test_a_layer_that_is_not_called_has_no_call() -> None:
    network = Network(lambda net, x: net.layer(x), layer=conv(3, 4), unused=conv(3, 4), norm=nn.BatchNorm2d(4))
    assert {name: len(calls) for name, calls in layer_calls(network, IMAGE).items()} == {"layer": 1, "unused": 0}


def test_the_network_stays_as_it_is() -> None:
    network = Network(lambda net, x: net.norm(net.layer(x)), layer=conv(3, 4), norm=nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layer_calls(network, IMAGE)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
