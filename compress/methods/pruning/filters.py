"""Removes the filters that were chosen from a network, and says why layers kept theirs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.channel_groups import ChannelGroup, Kept, PrunableNetwork
from compress.methods.pruning.layer_ratios import ratios_by_layer
from compress.models.layer_calls import LAYERS
from compress.models.widths import read_widths


@dataclass
class Pruned:
    """The result of a pruning."""

    kept: Kept  # for layers that lost some
    left_out: list[dict[str, str]]  # {layer, reason}: convolutions and linear layers that kept every filter


def own_ratios(prunable: PrunableNetwork, config: PruneConfig, others: float) -> list[float | None]:
    """Returns the ratio of each group by `config.layer_ratios`, the smallest of its layers; None where none has one.

    A layer of such a group without a ratio of its own counts with `others`.
    """
    ratios = ratios_by_layer(config.layer_ratios, prunable.before)

    def own(group: ChannelGroup) -> float | None:
        named = [layer for layer in group.layers if layer in ratios]
        return min(ratios.get(layer, others) for layer in group.layers) if named else None

    return [own(group) for group in prunable.groups]


def known_scores(prunable: PrunableNetwork, scores: list[Tensor | None]) -> list[Tensor]:
    """Returns zeros in place of scores that are missing: nothing of these groups is removed."""
    return [
        torch.zeros(group.channels) if score is None else score
        for group, score in zip(prunable.groups, scores, strict=True)
    ]


def remove_filters(prunable: PrunableNetwork, gone: list[list[int]], config: PruneConfig) -> Pruned:
    """Removes the channels `gone` of each group, in place; finds out why layers kept every filter."""
    kept, refused = prunable.remove(gone)
    fixed = refused | prunable.fixed
    ratios = ratios_by_layer(config.layer_ratios, prunable.before)
    after = read_widths(prunable.network)
    left_out = [
        {"layer": name, "reason": fixed.get(name) or _reason(prunable.before[name], ratios.get(name), config)}
        for name, module in prunable.network.named_modules()
        if isinstance(module, LAYERS) and prunable.before[name][0] == after[name][0]
    ]
    return Pruned(kept, left_out)


def _reason(width: list[int], ratio: float | None, config: PruneConfig) -> str:
    """Returns why a layer that could lose filters lost none."""
    if ratio == 0 or (ratio is None and config.ratio == 0 and not config.target.asked()):
        return "prune.ratio is 0" if config.ratio == 0 else "its ratio in prune.layer_ratios is 0"
    if config.importance == "bn_scale":
        return "its filters, or those coupled with them, have no batch norm, or no small weights in it"
    if config.scope == "sensitivity":
        return "its filters, or those coupled with them, cost more accuracy for what they save than others"
    if config.scope != "local":
        return "none of its filters, or of those coupled with them, is among the smallest of the network"
    return f"{width[0]} filters, or those coupled with them, leave nothing to remove in steps of {config.round_to}"
