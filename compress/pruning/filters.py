"""Takes filters out of a network for good, along torch-pruning's dependency graph."""

import copy
import math
import warnings
from dataclasses import dataclass

import torch
import torch_pruning
from torch import nn
from torch_pruning.dependency import DependencyGraph, Group

from compress.config import PruneConfig
from compress.models.widths import read_widths
from compress.pruning.counted import Watched, watch

_NORM = {"l1": 1, "l2": 2}
_LEAST_LEFT = 0.05  # of a layer's filters: global scope must not cut a path through the network
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass
class Pruned:
    """What a pruning did."""

    kept: dict[str, list[int]]  # layer -> the old filters that are left, for layers that lost some
    left_out: list[dict[str, str]]  # {layer, reason}: convolutions and linear layers that kept every filter


def prune_filters(network: nn.Module, example: torch.Tensor, config: PruneConfig) -> Pruned:
    """Removes the share `config.ratio` of the filters with the smallest norms (Li et al. 2017), or of any, in place.

    Filters that must go together (residual sums, depthwise convolutions) are ranked by the mean of their norms
    (Fang et al. 2023, "DepGraph"). `example` is (1, C, H, W). A ratio of 0 changes nothing. Raises ValueError where
    what is left cannot run, or is not what was chosen.
    """
    before = read_widths(network)
    fixed = {_logits_layer(network, example): "its outputs are the logits"}
    indexed = _with_filter_numbers(network)
    if config.ratio > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of parameters outside layers, which stay as they are
            watched = watch(network, example)
            graph, copied = _graph(watched, example), _graph(watch(indexed, example), example)
            fixed = _counted_layers(graph, watched) | fixed
            _remove(graph, [*map(network.get_submodule, fixed), *watched.markers], config)
            copied.load_pruning_history(graph.pruning_history())
    after = read_widths(network)
    kept = {
        name: module.weight.detach().flatten(1)[:, 0].long().tolist()
        for name, module in indexed.named_modules()
        if isinstance(module, _LAYERS) and before[name][0] != after[name][0]
    }
    _check(network, example, after, kept)
    left_out = [
        {"layer": name, "reason": _reason(name, before[name], fixed, config)}
        for name, module in network.named_modules()
        if isinstance(module, _LAYERS) and before[name][0] == after[name][0]
    ]
    return Pruned(kept, left_out)


def _logits_layer(network: nn.Module, example: torch.Tensor) -> str:
    """The name of the layer that runs last."""
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in network.named_modules()
        if isinstance(module, _LAYERS)
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return order[-1]


def _remove(graph: DependencyGraph, layers: list[nn.Module], config: PruneConfig) -> None:
    """Removes the lowest ranked filters of every group of coupled layers, but of those with one of `layers`."""
    groups = list(graph.get_all_groups(ignored_layers=layers))
    ranks = [_rank(group, config) for group in groups]
    limit = torch.cat(ranks).sort().values[_share(sum(map(len, ranks)), config.ratio) - 1] if ranks else None
    for group, rank in zip(groups, ranks, strict=True):
        parts = _parts(group)
        chosen = int((rank <= limit).sum()) if config.scope == "global" else _share(len(rank), config.ratio)
        left = max(len(rank) - chosen, math.ceil(_LEAST_LEFT * len(rank)))
        left -= left % (config.round_to // math.gcd(config.round_to, parts))  # the width is `parts` times as much
        if 0 < left < len(rank):
            gone = rank.argsort()[: len(rank) - left].tolist()
            root = group[0].dep
            every = [number + part * len(rank) for part in range(parts) for number in gone]
            graph.get_pruning_group(root.target.module, root.handler, sorted(every)).prune()


def _share(count: int, ratio: float) -> int:
    """How many of `count` are removed."""
    return count - int(count * (1 - ratio))


def _rank(group: Group, config: PruneConfig) -> torch.Tensor:
    """What each channel of a group is worth; of a grouped convolution, each that its parts lose together."""
    ranking = torch_pruning.importance
    norm = (
        ranking.RandomImportance()
        if config.importance == "random"
        else ranking.GroupMagnitudeImportance(p=_NORM[config.importance])
    )
    with torch.no_grad():
        return norm(group).view(_parts(group), -1).mean(0).cpu()


def _parts(group: Group) -> int:
    """Into how many equal parts grouped convolutions split the channels of a group; depthwise ones do not count."""
    layers = [dep.target.module for dep, _ in group]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.groups < layer.out_channels]
    return max((layer.groups for layer in convolutions), default=1)


def _graph(watched: Watched, example: torch.Tensor) -> DependencyGraph:
    return DependencyGraph().build_dependency(watched.model, example, watched.forward)


def _counted_layers(graph: DependencyGraph, watched: Watched) -> dict[str, str]:
    """The layers whose filters meet an operator that counts channels, with the reason."""
    fixed = {}
    for name, module in watched.model["network"].named_modules():
        if not isinstance(module, _LAYERS) or module not in graph.module2node:
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, prune, range(graph.get_out_channels(module)))
        reasons = [watched.markers[dep.target.module] for dep, _ in group if dep.target.module in watched.markers]
        if reasons:
            fixed[name] = reasons[0]
    return fixed


def _check(network: nn.Module, example: torch.Tensor, after: dict[str, list[int]], kept: dict[str, list[int]]) -> None:
    wrong = [name for name, filters in kept.items() if len(filters) != after[name][0]]
    if wrong:
        raise ValueError(f"received another pruning of {', '.join(wrong)} than was chosen; expected the same")
    try:
        with torch.no_grad():
            network(example)
    except RuntimeError as error:
        raise ValueError(f"received a pruned network that cannot run: {error}; expected one that does") from error


def _with_filter_numbers(network: nn.Module) -> nn.Module:
    """A copy in which the weights of filter i are all i: replaying the pruning on it tells which filters are left."""
    indexed = copy.deepcopy(network)
    with torch.no_grad():
        for module in indexed.modules():
            if isinstance(module, _LAYERS):
                shape = (-1, *[1] * (module.weight.ndim - 1))
                module.weight.copy_(torch.arange(len(module.weight)).view(shape).expand_as(module.weight))
    return indexed


def _reason(name: str, width: list[int], fixed: dict[str, str], config: PruneConfig) -> str:
    if name in fixed:
        return fixed[name]
    if config.ratio == 0:
        return "prune.ratio is 0"
    if config.scope == "global":
        return "none of its filters, or of those coupled with them, is among the smallest of the network"
    return f"{width[0]} filters, or those coupled with them, leave nothing to remove in steps of {config.round_to}"
