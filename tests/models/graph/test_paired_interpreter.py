"""Two networks side by side: values are those of the networks, as they are when a node's turn comes."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.models.graph.paired_interpreter import PairedInterpreter


class Branches(nn.Module):
    """A sum whose sides have no less than a function, a method, an in-place sum and a parameter of their own."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.left(x), inplace=True)
        y += self.right(x).sigmoid()
        return y * self.scale


@pytest.fixture
def pair() -> tuple[fx.Graph, nn.Module, nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    network = Branches()
    return fx.symbolic_trace(network).graph, network, copy.deepcopy(network), list(torch.randn(6, 4).split(4))


@torch.no_grad()
def test_values_are_those_of_the_networks_at_their_turn(pair) -> None:
    graph, network, original, images = pair
    interpreter = PairedInterpreter(graph, network, original, images)
    result = None
    for node in graph.nodes:
        if node.op == "output":
            result = node.args[0]
            for found, whole in (
                (interpreter.values(result), network),
                (interpreter.reference_values(result), original),
            ):
                assert all(torch.equal(some, whole(part)) for some, part in zip(found, images, strict=True))
        elif node.target in ("right", "scale"):
            parameter = network.scale if node.target == "scale" else network.right.weight
            parameter.mul_(3)
        interpreter.step(node)
    assert not torch.equal(network.scale, original.scale)


@torch.no_grad()
def test_a_change_counts_once_the_old_value_is_forgotten(pair) -> None:
    graph, network, original, images = pair
    interpreter = PairedInterpreter(graph, network, original, images)
    node = next(node for node in graph.nodes if node.target == "left")
    before = interpreter.values(node)[0]
    network.left.bias.add_(1)
    assert torch.equal(interpreter.values(node)[0], before)
    interpreter.invalidate(node)
    assert torch.allclose(interpreter.values(node)[0], before + 1)


def test_a_value_is_settled_where_no_later_parameter_goes_into_it(pair) -> None:
    graph, network, original, images = pair
    interpreter = PairedInterpreter(graph, network, original, images)
    node = {node.name: node for node in graph.nodes}
    assert interpreter.is_final(node["left"], node["right"])
    assert interpreter.is_final(node["sigmoid"], node["sigmoid"])
    assert not interpreter.is_final(node["sigmoid"], node["left"])
    assert not interpreter.is_final(node["mul"], node["add"])


@torch.no_grad()
def test_a_value_is_freed_behind_its_last_reader(pair) -> None:
    graph, network, original, images = pair
    interpreter = PairedInterpreter(graph, network, original, images)
    for node in graph.nodes:
        interpreter.step(node)
        alive = {source for (_, source), chunks in interpreter._values.items() if chunks} - interpreter._constants
        order = list(graph.nodes)
        assert all(any(order.index(user) > order.index(node) for user in source.users) for source in alive)
