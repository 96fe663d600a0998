"""Traces follow branches on shapes, and stop at what a graph cannot say."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.graph.paired_interpreter import PairedInterpreter
from compress.models.graph.tracing import batch_norm_at, trace
from tests.methods.pruning.networks import Network, conv

IMAGE = torch.zeros(1, 3, 16, 16)


def calls(network: nn.Module, image: Tensor | None = IMAGE) -> list[str]:
    return [node.target for node in trace(network.eval(), image).nodes if node.op == "call_module"]


def on_shapes(net: Network, x: Tensor) -> Tensor:
    if x.shape[-1] % 2:
        x = F.pad(x, (0, 1))
    sides = [side // 2 for side in x.shape[2:]]
    return net.b(net.a(x)).view(x.shape[0], 4, *sides, -1)


def on_values(net: Network, x: Tensor) -> Tensor:
    return net.b(net.a(x)) if x.mean() > 0 else net.a(x)


def test_a_branch_on_shapes_goes_as_for_the_image() -> None:
    network = Network(on_shapes, a=conv(3, 4), b=conv(4, 4))
    assert calls(network) == ["a", "b"]
    assert calls(network, None) == [""]


def test_a_branch_on_values_stays_one_node() -> None:
    assert calls(Network(on_values, a=conv(3, 4), b=conv(4, 4))) == [""]


def changed_and_read_again(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(net.relu(x)) + x


def changed_without_a_name(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    net.relu(x)
    return net.b(x)


def changed_by_a_method(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    x.clamp_(0, 1)
    return net.b(x)


def changed_by_a_function(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(F.relu(x, True)) + x


@pytest.mark.parametrize(
    "forward", [changed_and_read_again, changed_without_a_name, changed_by_a_method, changed_by_a_function]
)
def test_values_that_change_under_their_name_stay_one_node(forward) -> None:
    assert calls(Network(forward, a=conv(3, 4), b=conv(4, 4), relu=nn.ReLU(inplace=True))) == [""]


def test_what_is_changed_in_place_and_read_by_its_new_name_is_followed() -> None:
    network = Network(
        lambda net, x: net.b(net.relu(net.a(x)).mul_(2)), a=conv(3, 4), b=conv(4, 4), relu=nn.ReLU(inplace=True)
    )
    assert calls(network) == ["a", "relu", "b"]


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, groups=self.groups)


def test_a_convolution_of_ones_own_is_one_node_as_its_groups_may_change() -> None:
    assert calls(Network(lambda net, x: net.b(net.a(x)), a=conv(3, 4), b=Padded(4, 4, 2, groups=4))) == ["a", "b"]


def test_batch_norm_that_is_called_without_statistics_is_no_batch_norm() -> None:
    network = Network(lambda net, x: F.batch_norm(net.a(x), None, None, training=True), a=conv(3, 4))
    assert [batch_norm_at(network, node) for node in trace(network).nodes] == [None] * 4


def test_tensors_that_the_forward_pass_makes_are_part_of_the_trace() -> None:
    network = Network(lambda net, x: net.a(x) * torch.linspace(0, 1, 16), a=conv(3, 4)).eval()
    images = torch.randn(2, 3, 16, 16)
    graph = trace(network, IMAGE)
    pair = PairedInterpreter(graph, network, network, [images])
    last = next(node for node in graph.nodes if node.op == "output").args[0]
    with torch.no_grad():
        assert torch.equal(pair.values(last)[0], network(images))


class Caching(nn.Module):
    """Keeps what its forward pass computed, as networks keep the biases of their attention in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache["last"] = self.fc(x)
        self.result = self.cache["last"] + 1
        return self.result


def test_a_trace_leaves_nothing_in_the_networks_attributes() -> None:
    network = Caching()
    kept = network.cache
    trace(network.eval(), torch.zeros(1, 4))
    assert network.cache is kept
    assert kept == {}
    assert not hasattr(network, "result")
