"""Takes filters out of a network for good, along torch-pruning's dependency graph."""

import copy
import warnings
from dataclasses import dataclass

import torch
import torch_pruning
from torch import nn

from compress.config import PruneConfig
from compress.models.widths import read_widths

_NORM = {"l1": 1, "l2": 2}


@dataclass
class Pruned:
    """What a pruning did."""

    kept: dict[str, list[int]]  # layer -> the old filters that are left, for layers that lost some
    left_out: list[dict[str, str]]  # {layer, reason}: convolutions and linear layers that kept every filter


def prune_filters(network: nn.Module, example: torch.Tensor, config: PruneConfig) -> Pruned:
    """Removes the share `config.ratio` of the filters with the smallest norms (Li et al. 2017), or of any, in place.

    Filters that must go together (residual sums, depthwise convolutions) are ranked by the mean of their norms
    (Fang et al. 2023, "DepGraph"). `example` is (1, C, H, W). A ratio of 0 changes nothing.
    """
    before = read_widths(network)
    fixed = fixed_layers(network, example)
    indexed = _with_filter_numbers(network)
    if config.ratio > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of parameters outside layers, which no model here has
            pruner = _pruner(network, example, config, fixed)
            pruner.step()
            history = pruner.pruning_history()
            graph = torch_pruning.DependencyGraph().build_dependency(indexed, example)
            graph.load_pruning_history(history)
    after = read_widths(network)
    kept = {
        name: module.weight.detach().flatten(1)[:, 0].long().tolist()
        for name, module in indexed.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and before[name][0] != after[name][0]
    }
    left_out = [
        {"layer": name, "reason": _reason(name, before[name], fixed, config)}
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and before[name][0] == after[name][0]
    ]
    return Pruned(kept, left_out)


def fixed_layers(network: nn.Module, example: torch.Tensor) -> dict[str, str]:
    """The layers whose filters have to stay, with the reason: the one that gives the logits, and the model's own."""
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return {order[-1]: "its outputs are the logits"} | getattr(network, "fixed_layers", {})


def _pruner(
    network: nn.Module, example: torch.Tensor, config: PruneConfig, fixed: dict[str, str]
) -> torch_pruning.pruner.BasePruner:
    layers = dict(network.named_modules())
    importance = torch_pruning.importance
    ranking = (
        importance.RandomImportance()
        if config.importance == "random"
        else importance.GroupMagnitudeImportance(p=_NORM[config.importance])
    )
    return torch_pruning.pruner.BasePruner(
        network,
        example,
        importance=ranking,
        pruning_ratio=config.ratio,
        max_pruning_ratio=0.95,  # global scope must not cut a path through the network
        global_pruning=config.scope == "global",
        round_to=config.round_to if config.round_to > 1 else None,
        ignored_layers=[layers[name] for name in fixed],
    )


def _with_filter_numbers(network: nn.Module) -> nn.Module:
    """A copy in which the weights of filter i are all i: replaying the pruning on it tells which filters are left."""
    indexed = copy.deepcopy(network)
    with torch.no_grad():
        for module in indexed.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
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
