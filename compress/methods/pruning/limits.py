"""Turns a target into limits on costs that follow from widths alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import nn

from compress.config.stage_settings import ENERGY_LIMIT, PruneConfig
from compress.methods.pruning.channel_groups import ChannelGroup, PrunableNetwork
from compress.methods.pruning.cost import Cost, Widths, macs_cost, params_cost
from compress.methods.pruning.target import Limit
from compress.models.layer_calls import LayerCall, layer_calls


class ShippedFile(Protocol):
    """The file that a run will ship, as far as its cost depends on the pruned network."""

    teacher_latency_ms: float  # of the teacher's file, one image

    def cost(
        self, name: str, network: nn.Module, calls: dict[str, list[LayerCall]], other: nn.Module | None = None
    ) -> Cost:
        """Returns the "size_bytes", "latency_ms" or "estimated_energy_mj" of the file of a network with other widths.

        `other` has the layers that may take the place of some of `network`; `calls` has the calls of both.
        """
        ...

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Writes the file of a network and returns its size_bytes, latency_ms and speedup."""
        ...


@dataclass
class Whole:
    """The network before its first cut, of which shares are taken."""

    widths: Widths
    macs: float  # of one image
    params: float

    def costs(self, prunable: PrunableNetwork, widths: Widths) -> dict[str, float]:
        """Returns MACs and parameters of a pruned network, and their shares."""
        calls = layer_calls(prunable.network, prunable.example)
        return self.figures(_macs(calls, self).of(widths), params_cost(prunable.network).of(widths))

    def figures(self, macs: float, params: float) -> dict[str, float]:
        """Returns MACs and parameters, and their shares of this network's."""
        return {"macs": macs, "macs_share": macs / self.macs, "params": params, "params_share": params / self.params}

    def channels(self, prunable: PrunableNetwork) -> list[int]:
        """Returns how many channels each group had in it."""
        shares = [_share_of_layer(prunable, group) for group in prunable.groups]
        return [round(self.widths[name][0] * share) for name, share in shares]


def limits_of(
    prunable: PrunableNetwork, config: PruneConfig, whole: Whole, shipped: Callable[[], ShippedFile]
) -> list[Limit]:
    """Returns the limits on costs of `config.target`, or that of `config.ratio` where no target is set."""
    asked, network = config.target.asked(), prunable.network
    if not asked:
        filters = _filters_cost(prunable)
        return [Limit("filters_share", 1 - config.ratio, filters, sum(whole.channels(prunable)))]
    calls = layer_calls(network, prunable.example)
    file = FileCosts(shipped, network, calls)
    return limits_of_target(asked, whole, _macs(calls, whole), params_cost(network), file)


@dataclass
class FileCosts:
    """The costs of the file that ships, which is written and measured where its size or latency is limited."""

    shipped: Callable[[], ShippedFile]
    network: nn.Module
    calls: dict[str, list[LayerCall]]
    other: nn.Module | None = None  # has the layers that may take the place of some

    def of(self, name: str) -> Cost:
        """Returns the cost "size_bytes", "latency_ms" or "estimated_energy_mj"."""
        return self.shipped().cost(name, self.network, self.calls, self.other)


def limits_of_target(asked: dict[str, float], whole: Whole, macs: Cost, params: Cost, file: FileCosts) -> list[Limit]:
    """Returns the limits on costs of a target, by the names of `asked`."""
    limits = []
    if "macs_share" in asked:
        limits.append(Limit("macs_share", asked["macs_share"], macs, whole.macs))
    if "params_share" in asked:
        limits.append(Limit("params_share", asked["params_share"], params, whole.params))
    if ENERGY_LIMIT in asked:
        energy = file.of("estimated_energy_mj")
        limits.append(Limit(ENERGY_LIMIT, asked[ENERGY_LIMIT], energy, energy.of(whole.widths)))
    if "size_bytes" in asked:
        limits.append(Limit("size_bytes", asked["size_bytes"], file.of("size_bytes")))
    if "latency_ms" in asked or "speedup" in asked:
        by_speedup = file.shipped().teacher_latency_ms / asked["speedup"] if "speedup" in asked else math.inf
        highest = min(asked.get("latency_ms", math.inf), by_speedup)
        limits.append(Limit("latency_ms", highest, file.of("latency_ms")))
    return limits


def part_of_the_way(limits: list[Limit], prunable: PrunableNetwork, progress: float) -> list[Limit]:
    """Returns limits that are `progress` of the way from the present figures to `limits`, on a logarithmic scale."""
    figures = [limit.figure(prunable.before) for limit in limits]
    return [
        replace(limit, highest=figure * min(1.0, limit.highest / figure) ** progress)
        for limit, figure in zip(limits, figures, strict=True)
    ]


def currency(limits: list[Limit], prunable: PrunableNetwork, whole: Whole) -> Cost:
    """Returns the cost that a cut has to save most of; MACs where no cost is limited."""
    return tightest(limits, prunable.before) or _macs(layer_calls(prunable.network, prunable.example), whole)


def tightest(limits: list[Limit], widths: Widths) -> Cost | None:
    """Returns the cost whose limit is the farthest below its figure with these widths; None without a limit."""
    if not limits:
        return None
    return max(limits, key=lambda limit: limit.figure(widths) / limit.highest).cost


def _macs(calls: dict[str, list[LayerCall]], whole: Whole) -> Cost:
    """Returns the MACs of one image; those outside of layers, as in attention, do not change."""
    layers = macs_cost(calls)
    return replace(layers, rest=whole.macs - layers.of(whole.widths))


def _filters_cost(prunable: PrunableNetwork) -> Cost:
    """Returns the number of channels that can go, of all groups."""
    counted: dict[str, float] = {}
    for group in prunable.groups:
        name, share = _share_of_layer(prunable, group)
        counted[name] = counted.get(name, 0.0) + share
    return Cost(lambda name, width: width[0] * counted.get(name, 0.0))


def _share_of_layer(prunable: PrunableNetwork, group: ChannelGroup) -> tuple[str, float]:
    """Returns the layer with the least filters beside those of a group, and the group's channels for each filter.

    A layer that is added to a concatenation makes the channels of several groups.
    """
    channels = {name: prunable.before[name][0] / group.losses[name, "out"] for name in group.layers}
    name = min(group.layers, key=channels.__getitem__)
    return name, group.channels / prunable.before[name][0]
