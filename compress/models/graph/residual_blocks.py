"""Finds the modules of a network that return their input plus what branches add to it: without, the input goes on."""

import copy
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.models.graph.tracing import trace
from compress.models.sub_network import replace_by_identities

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_UNCHANGED = (nn.Identity, nn.Dropout, nn.Dropout2d)  # they change nothing in eval mode
_RELU = {nn.ReLU: "relu", F.relu: "relu", torch.relu: "relu", "relu": "relu", "relu_": "relu", nn.ReLU6: "relu6"}
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)  # what was in the range of an activation stays in it


@dataclass(frozen=True)
class ResidualBlock:
    """A module that returns what it reads where its branches are left out, and its nodes in a graph."""

    name: str
    source: fx.Node  # what it reads
    end: fx.Node  # what it returns
    nodes: frozenset[fx.Node]  # all that it computes, `end` among them


def residual_blocks(network: nn.Module, example: Tensor) -> list[str]:
    """Returns the innermost modules in whose place the network runs with an identity, in order.

    Such a module has one input and one output of the same shape, which is the sum of that input and of branches, or
    such a sum of a sum. An activation may follow that changes nothing where a branch adds nothing: ReLU after ReLU.
    `example` is (1, C, H, W).
    """
    graph = trace(network.eval(), example)
    found = blocks_in(graph, network, [name for name, _ in network.named_modules() if name])
    inner = [block for block in found if not any(_is_inside(other, block) for other in found)]
    return _that_run(network, example, [block.name for block in inner])


def blocks_in(graph: fx.Graph, network: nn.Module, names: Iterable[str]) -> list[ResidualBlock]:
    """Returns those of the modules `names` that are residual blocks in `graph`, the trace of `network`."""
    calls: dict[str, dict[str, list[fx.Node]]] = {}  # module -> call -> its nodes
    for node in graph.nodes:
        for call, (name, _) in node.meta.get("nn_module_stack", {}).items():
            own = name.removeprefix("network").removeprefix(".")  # as `trace` names modules
            calls.setdefault(own, {}).setdefault(call, []).append(node)
    once = {name: next(iter(found.values())) for name, found in calls.items() if len(found) == 1}
    blocks = (_block(name, once[name], network) for name in names if name in once)
    return [block for block in blocks if block is not None]


def _is_inside(one: ResidualBlock, other: ResidualBlock) -> bool:
    return one.nodes < other.nodes or (one.nodes == other.nodes and one.name.startswith(f"{other.name}."))


def is_sum(node: fx.Node) -> bool:
    """Whether `node` adds two values."""
    return node.target in _SUMS and len(node.args) == 2 and not node.kwargs


def is_unchanged(network: nn.Module, node: fx.Node) -> bool:
    """Whether `node` returns its input unchanged in eval mode."""
    if node.op == "call_module":
        return isinstance(network.get_submodule(node.target), _UNCHANGED)
    return getattr(node.target, "__name__", "") == "stochastic_depth"


def _block(name: str, inside: list[fx.Node], network: nn.Module) -> ResidualBlock | None:
    nodes = frozenset(inside)
    read = {source for node in inside for source in node.all_input_nodes if source not in nodes}
    sources = [node for node in read if node.op != "get_attr"]
    ends = [node for node in inside if any(user not in nodes for user in node.users)]
    if len(sources) != 1 or len(ends) != 1:
        return None
    block = ResidualBlock(name, sources[0], ends[0], nodes)
    return block if _sums_on_the_way(block, network) else None


def _sums_on_the_way(block: ResidualBlock, network: nn.Module) -> int | None:
    """Returns how many sums lie on the way from the input to the output; None where another operator does, too."""

    def count(node: Any) -> int | None:
        if node is block.source:
            return 0
        if not isinstance(node, fx.Node) or node not in block.nodes:
            return None
        if is_sum(node):
            ways = [found for found in map(count, node.args) if found is not None]
            return 1 + ways[0] if len(ways) == 1 else None
        passes = is_unchanged(network, node) or _keeps_range(node, block.source, network)
        return count(node.all_input_nodes[0]) if passes and node.all_input_nodes else None

    return count(block.end)


def _keeps_range(node: fx.Node, source: fx.Node, network: nn.Module) -> bool:
    """Whether `node` is an activation that does not change `source`, because the same one computed that."""
    kind = _activation(node, network)
    while source.all_input_nodes and _is_pooling(source, network):
        source = source.all_input_nodes[0]
    return kind is not None and kind == _activation(source, network)


def _is_pooling(node: fx.Node, network: nn.Module) -> bool:
    return is_unchanged(network, node) or (
        node.op == "call_module" and isinstance(network.get_submodule(node.target), _POOLINGS)
    )


def _activation(node: fx.Node, network: nn.Module) -> str | None:
    target = type(network.get_submodule(node.target)) if node.op == "call_module" else node.target
    return _RELU.get(target)


def _that_run(network: nn.Module, example: Tensor, names: list[str]) -> list[str]:
    """Returns those without which the network still runs and returns outputs of the same shape."""
    shape = _shape(network, example)

    def run(chosen: list[str]) -> bool:
        return _shape(replace_by_identities(copy.deepcopy(network), chosen), example) == shape

    return names if run(names) else [name for name in names if run([name])]


@torch.no_grad()
def _shape(network: nn.Module, example: Tensor) -> Any:
    """Returns the shapes of the outputs; None where `network` does not run."""
    try:
        outputs = network.eval()(example)
    except Exception:  # the network's code may be the user's, and so are its errors: another choice may do
        return None
    return torch.utils._pytree.tree_map(lambda x: tuple(getattr(x, "shape", ())), outputs)
