"""Removes filters from a network along torch-pruning's dependency graph."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch_pruning.dependency import DependencyGraph, Group

from compress.config.schema import PruneConfig
from compress.methods.pruning.channel_constraints import LOGITS, TracedModel, requiring_gradients, trace_channels
from compress.methods.pruning.layer_ratios import ratios_by_layer
from compress.models.widths import read_widths

_NORM = {"l1": 1, "l2": 2}
_LEAST_LEFT = 0.05  # share of a layer's filters that stays: global scope must not cut a path through the network
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass
class Pruned:
    """The result of `prune_filters`."""

    kept: dict[str, list[int]]  # layer -> the old filters that remain, for layers that lost some
    left_out: list[dict[str, str]]  # {layer, reason}: convolutions and linear layers that kept every filter


@dataclass
class _Choice:
    """The filters to remove from one group of coupled layers: `numbers` of the layer `root`, in order."""

    root: nn.Module
    handler: Any  # torch-pruning's pruning function of `root`
    numbers: list[int]


class _Graph(DependencyGraph):
    """torch-pruning's graph; it follows `flatten` into linear layers also where others of them read (N, T, C)."""

    _2d_4d = property(lambda self: True, lambda self, value: None)


def prune_filters(network: nn.Module, example: torch.Tensor, config: PruneConfig) -> Pruned:
    """Removes the filters with the smallest norms (Li et al. 2017), or of any, in place.

    Each layer loses the share `config.ratio`, or that of `config.layer_ratios`. Filters that must go together (residual
    sums, depthwise convolutions) are ranked by the mean of their norms (Fang et al. 2023, "DepGraph"). `example` is
    (1, C, H, W). Frozen parameters are pruned like all others, and stay frozen. A ratio of 0 changes nothing. Raises
    UserError for ratios of no layer, and ValueError where the pruned network returns outputs of another shape.
    """
    before = read_widths(network)
    fixed = {_last_called_layer(network, example): LOGITS}
    kept: dict[str, list[int]] = {}
    ratios = ratios_by_layer(config.layer_ratios, before)
    if config.ratio > 0 or any(ratios.values()):
        with warnings.catch_warnings(), requiring_gradients(network), torch.enable_grad():
            warnings.simplefilter("ignore")  # it warns of parameters outside layers, which stay as they are
            traced = trace_channels(network, example)
            graph = _Graph().build_dependency(traced.model, example, traced.forward)
            fixed = _fixed_layers(graph, traced) | fixed
            by_layer = {network.get_submodule(name): ratio for name, ratio in ratios.items()}
            choices = _select_filters(graph, [*map(network.get_submodule, fixed), *traced.barriers], config, by_layer)
            names = {module: name for name, module in network.named_modules()}
            kept, refused = _remove(graph, choices, network, example)
            kept = {names[layer]: filters for layer, filters in kept.items()}
            fixed = {names[layer]: reason for layer, reason in refused.items()} | fixed
    after = read_widths(network)
    left_out = [
        {"layer": name, "reason": _reason(name, before[name], fixed, ratios.get(name, config.ratio), config)}
        for name, module in network.named_modules()
        if isinstance(module, _LAYERS) and before[name][0] == after[name][0]
    ]
    return Pruned(kept, left_out)


def _last_called_layer(network: nn.Module, example: torch.Tensor) -> str:
    """Returns the name of the layer that runs last."""
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


def _select_filters(
    graph: DependencyGraph, layers: list[nn.Module], config: PruneConfig, ratios: dict[nn.Module, float]
) -> list[_Choice]:
    """Returns the lowest ranked filters of every group of coupled layers, except of groups with one of `layers`.

    A group with a layer in `ratios` loses the smallest share of its layers.
    """
    groups = list(graph.get_all_groups(ignored_layers=layers))
    ranks = [_rank(group, config) for group in groups]
    count = _share(sum(map(len, ranks)), config.ratio)
    limit = torch.cat(ranks).sort().values[count - 1] if count else torch.tensor(-math.inf)
    choices = []
    for group, rank in zip(groups, ranks, strict=True):
        parts, gone = _parts(group), []
        own = _own_ratio(group, ratios, config.ratio)
        for places in _shared_places(group, len(rank)):
            ranked = rank[places]
            chosen = int((ranked <= limit).sum())
            if config.scope == "local" or own is not None:
                chosen = _share(len(places), config.ratio if own is None else own)
            left = max(len(places) - chosen, math.ceil(_LEAST_LEFT * len(places)))
            left -= left % (config.round_to // math.gcd(config.round_to, parts))  # the width is `parts` times as much
            if left > 0:
                gone += places[ranked.argsort()[: len(places) - left]].tolist()
        if gone:
            root = group[0].dep
            numbers = [number + part * len(rank) for part in range(parts) for number in gone]
            choices.append(_Choice(root.target.module, root.handler, sorted(numbers)))
    return choices


def _own_ratio(group: Group, ratios: dict[nn.Module, float], others: float) -> float | None:
    """Returns the smallest ratio of the layers that lose filters with a group; None where none has its own."""
    layers = {
        dep.target.module
        for dep, _ in group
        if isinstance(dep.target.module, _LAYERS)
        and dep.handler == group._DG.get_pruner_of_module(dep.target.module).prune_out_channels
    }
    if not layers.intersection(ratios):
        return None
    return min(ratios.get(layer, others) for layer in layers)


def _shared_places(group: Group, count: int) -> list[torch.Tensor]:
    """Groups the places of the `count` channels of a group by the layers that compute them.

    A gate on a concatenation is coupled with all its parts: without this, one part could lose all its filters.
    """
    makers: list[set[int]] = [set() for _ in range(count)]
    for at in range(len(group)):
        layer = group[at].dep.target.module
        if (
            isinstance(layer, _LAYERS)
            and group[at].dep.handler == group._DG.get_pruner_of_module(layer).prune_out_channels
        ):
            for place in group[at].root_idxs:
                makers[place % count].add(id(layer))
    places: dict[frozenset[int], list[int]] = {}
    for place, layers in enumerate(makers):
        places.setdefault(frozenset(layers), []).append(place)
    return [torch.tensor(each) for each in places.values()]


def _remove(
    graph: DependencyGraph, choices: list[_Choice], network: nn.Module, example: torch.Tensor
) -> tuple[dict[nn.Module, list[int]], dict[nn.Module, str]]:
    """Prunes; returns the remaining filters of each layer, and the reasons of layers that cannot lose theirs.

    Where the network does not run any more, groups are tried one by one: a shape that is written as numbers in the
    forward pass shows only when it runs.
    """
    shapes = _shapes(network, example)
    whole = _state(graph)
    kept = {layer: left for choice in choices for layer, left in _prune(graph, choice).items()}
    if _failure(network, example, shapes) is None:
        return kept, {}
    _set_state(whole)
    refused: dict[nn.Module, str] = {}
    kept = {}
    for choice in choices:
        before = _state(graph)
        left = _prune(graph, choice)
        failure = _failure(network, example, shapes)
        if failure is None:
            kept |= left
        else:
            _set_state(before)
            refused |= dict.fromkeys(left, f"with fewer of them the network does not run: {failure}")
    failure = _failure(network, example, shapes)
    if failure is not None:
        raise ValueError(f"received a network that does not run twice alike: {failure}; expected one that does")
    return kept, refused


def _prune(graph: DependencyGraph, choice: _Choice) -> dict[nn.Module, list[int]]:
    """Prunes one group; returns the remaining filters of each of its layers."""
    group = graph.get_pruning_group(choice.root, choice.handler, choice.numbers)
    kept = {}
    for dep, numbers in group:
        layer = dep.target.module
        if isinstance(layer, _LAYERS) and graph.is_out_channel_pruning_fn(dep.handler):
            kept[layer] = sorted(set(range(graph.get_out_channels(layer))) - set(numbers))
    group.prune(record_history=False)
    return kept


def _state(graph: DependencyGraph) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Copies what pruning changes in a graph: it replaces the parameters of layers, and changes lists in place."""
    copied = (dict, list)
    return [
        (module, {name: value.copy() if type(value) in copied else value for name, value in vars(module).items()})
        for module in graph.module2node
        if isinstance(module, nn.Module)
    ]


def _set_state(state: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, values in state:
        vars(module).update(values)


def _shapes(network: nn.Module, example: torch.Tensor) -> Any:
    """Returns the shapes of the network's outputs."""
    with torch.no_grad():
        outputs = network(example)
    return torch.utils._pytree.tree_map(lambda x: tuple(getattr(x, "shape", ())), outputs)


def _failure(network: nn.Module, example: torch.Tensor, shapes: Any) -> str | None:
    """Returns why the pruned network does not work; None where it does."""
    try:
        found = _shapes(network, example)
    except Exception as error:  # whatever the user's code raises is the reason
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None if found == shapes else f"it returns {found} in place of {shapes}"


def _share(count: int, ratio: float) -> int:
    """Returns how many of `count` are removed."""
    return count - int(count * (1 - ratio))


def _rank(group: Group, config: PruneConfig) -> torch.Tensor:
    """Returns the importance of each channel of a group; parts of a grouped convolution lose channels together."""
    ranking = torch_pruning.importance
    norm = (
        ranking.RandomImportance()
        if config.importance == "random"
        else ranking.GroupMagnitudeImportance(p=_NORM[config.importance])
    )
    with torch.no_grad():
        return norm(group).view(_parts(group), -1).mean(0).cpu()


def _parts(group: Group) -> int:
    """Returns into how many equal parts grouped convolutions split a group's channels; depthwise ones do not count."""
    return math.lcm(*(layer.groups for layer, _ in _grouped(group)))


def _grouped(group: Group) -> list[tuple[nn.Conv2d, int]]:
    """Returns the grouped convolutions, with the number of their channels that belong to this group of layers."""
    layers = [(dep.target.module, len(numbers)) for dep, numbers in group]
    return [pair for pair in layers if isinstance(pair[0], nn.Conv2d) and 1 < pair[0].groups < pair[0].out_channels]


def _fixed_layers(graph: DependencyGraph, traced: TracedModel) -> dict[str, str]:
    """Returns the layers that cannot lose a filter, with the reason."""
    fixed = {}
    for name, module in traced.model["network"].named_modules():
        if not isinstance(module, _LAYERS):
            continue
        if module not in traced.called or module not in graph.module2node:
            fixed[name] = "it is not called as a layer in eval mode: its weight is read elsewhere, or not at all"
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, prune, range(graph.get_out_channels(module)))
        reasons = [traced.barriers[dep.target.module] for dep, _ in group if dep.target.module in traced.barriers]
        if any(count not in (layer.in_channels, layer.out_channels) for layer, count in _grouped(group)):
            reasons.append("its channels are some of those that a convolution in groups reads")
        if reasons:
            fixed[name] = LOGITS if LOGITS in reasons else reasons[0]
    return fixed


def _reason(name: str, width: list[int], fixed: dict[str, str], ratio: float, config: PruneConfig) -> str:
    if name in fixed:
        return fixed[name]
    if ratio == 0:
        return "prune.ratio is 0" if config.ratio == 0 else "its ratio in prune.layer_ratios is 0"
    if config.scope == "global":
        return "none of its filters, or of those coupled with them, is among the smallest of the network"
    return f"{width[0]} filters, or those coupled with them, leave nothing to remove in steps of {config.round_to}"
