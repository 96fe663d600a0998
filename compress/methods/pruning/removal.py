"""Removes filters from the layers of torch-pruning's groups, and puts them back where the network does not run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.dependency import DependencyGraph

from compress.models.layer_calls import LAYERS


@dataclass
class Choice:
    """The filters to remove from one group of coupled layers: `numbers` of the layer `root`, in order."""

    root: nn.Module
    handler: Any  # torch-pruning's pruning function of `root`
    numbers: list[int]


def remove_choices(
    graph: DependencyGraph, choices: list[Choice], network: nn.Module, example: Tensor
) -> tuple[dict[nn.Module, list[int]], dict[nn.Module, str]]:
    """Prunes; returns the remaining filters of each layer, and the reasons of layers that cannot lose theirs.

    Where the network does not run any more, groups are tried one by one: a shape that is written as numbers in the
    forward pass shows only when it runs.
    """
    shapes = _shapes(network, example)
    whole = graph_state(graph)
    kept = {layer: left for choice in choices for layer, left in _prune(graph, choice).items()}
    if _failure(network, example, shapes) is None:
        return kept, {}
    set_state(whole)
    refused: dict[nn.Module, str] = {}
    kept = {}
    for choice in choices:
        before = graph_state(graph)
        left = _prune(graph, choice)
        failure = _failure(network, example, shapes)
        if failure is None:
            kept |= left
        else:
            set_state(before)
            refused |= dict.fromkeys(left, f"with fewer of them the network does not run: {failure}")
    failure = _failure(network, example, shapes)
    if failure is not None:
        raise ValueError(f"received a network that does not run twice alike: {failure}; expected one that does")
    return kept, refused


def _prune(graph: DependencyGraph, choice: Choice) -> dict[nn.Module, list[int]]:
    """Prunes one group; returns the remaining filters of each of its layers."""
    group = graph.get_pruning_group(choice.root, choice.handler, choice.numbers)
    kept = {}
    for dep, numbers in group:
        layer = dep.target.module
        if isinstance(layer, LAYERS) and graph.is_out_channel_pruning_fn(dep.handler):
            kept[layer] = sorted(set(range(graph.get_out_channels(layer))) - set(numbers))
    group.prune(record_history=False)
    return kept


def graph_state(graph: DependencyGraph) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Copies what pruning changes in a graph: it replaces the parameters of layers, and changes lists in place."""
    copied = (dict, list)
    return [
        (module, {name: value.copy() if type(value) in copied else value for name, value in vars(module).items()})
        for module in graph.module2node
        if isinstance(module, nn.Module)
    ]


def set_state(state: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    """Sets what `graph_state` copied."""
    for module, values in state:
        vars(module).update(values)


def _shapes(network: nn.Module, example: Tensor) -> Any:
    """Returns the shapes of the network's outputs."""
    with torch.no_grad():
        outputs = network(example)
    return torch.utils._pytree.tree_map(lambda x: tuple(getattr(x, "shape", ())), outputs)


def _failure(network: nn.Module, example: Tensor, shapes: Any) -> str | None:
    """Returns why the pruned network does not work; None where it does."""
    try:
        found = _shapes(network, example)
    except Exception as error:  # whatever the user's code raises is the reason
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None if found == shapes else f"it returns {found} in place of {shapes}"
