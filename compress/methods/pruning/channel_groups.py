"""Finds the channels of a network that can go, in groups of those that must go together, and removes some of them."""

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.dependency import DependencyGraph, Group

from compress.methods.pruning.channel_constraints import LOGITS, TracedModel, requiring_gradients, trace_channels
from compress.methods.pruning.removal import Choice, graph_state, remove_choices, set_state
from compress.models.layer_calls import LAYERS, call_order
from compress.models.widths import read_widths

_LEAST_LEFT = 0.05  # share of a group's channels that stays: no ranking may cut a path through the network

Kept = dict[str, list[int]]  # layer -> its old filters that remain, for layers that lose some


@dataclass
class ChannelGroup:
    """Channels that are ranked against each other; each may go in several layers at once."""

    group: Group  # torch-pruning's, with all its channels
    places: Tensor  # which of them these are
    parts: int  # into how many equal parts grouped convolutions split them, which lose the same ones
    layers: list[str]  # the layers that lose a filter with a channel
    losses: dict[tuple[str, str], float]  # (layer, "out" or "in") -> how many channels it loses with one of these
    step: int  # the number that stays is a multiple of this

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.places)

    def allowed(self, left: float) -> int:
        """Returns the nearest number of channels below `left` that may stay."""
        least = max(left, math.ceil(_LEAST_LEFT * self.channels))
        return min(self.channels, max(int(least) // self.step * self.step, self.step))

    def role(self) -> str:
        """Returns what kinds of layers the channels connect; it is the same in groups that are isomorphic.

        Fang et al. 2024, "Isomorphic pruning for vision models", arXiv:2407.04616, section 3.2.
        """
        is_output = self.group._DG.is_out_channel_pruning_fn
        return " ".join(
            f"{type(dep.source.module).__name__}>{type(dep.target.module).__name__}.{is_output(dep.handler)}"
            for dep, _ in self.group
        )


class _Graph(DependencyGraph):
    """torch-pruning's graph; it follows `flatten` into linear layers also where others of them read (N, T, C)."""

    _2d_4d = property(lambda self: True, lambda self, value: None)


class PrunableNetwork:
    """A network with its groups of channels. `fixed` names the layers that cannot lose a filter, with the reasons."""

    def __init__(self, network: nn.Module, example: Tensor, round_to: int = 1):
        """Traces `network` on `example` (1, C, H, W); widths will be multiples of `round_to`."""
        self.network, self.example = network, example
        self.before = read_widths(network)
        self._names = {module: name for name, module in network.named_modules()}
        layers = [module for module in network.modules() if isinstance(module, LAYERS)]
        last = {self._names[call_order(network, example, layers)[-1]]: LOGITS}
        with warnings.catch_warnings(), requiring_gradients(network), torch.enable_grad():
            warnings.simplefilter("ignore")  # it warns of parameters outside layers, which stay as they are
            traced = trace_channels(network, example)
            self.graph = _Graph().build_dependency(traced.model, example, traced.forward)
            self.fixed = _fixed_layers(self.graph, traced) | last
            ignored = [*map(network.get_submodule, self.fixed), *traced.barriers]
            coupled = list(self.graph.get_all_groups(ignored_layers=ignored))
        self.groups = [part for group in coupled for part in self._split(group, round_to)]
        self._leave_out_refused()

    def widths(self, left: Sequence[int]) -> dict[str, list[int]]:
        """Returns the widths of all layers, as `read_widths`, where so many channels of each group stay."""
        lost: dict[tuple[str, str], float] = {}
        for group, count in zip(self.groups, left, strict=True):
            for place, each in group.losses.items():
                lost[place] = lost.get(place, 0) + each * (group.channels - count)
        return {name: self._narrowed(name, width, lost) for name, width in self.before.items()}

    def lowest(self, left: Sequence[int], scores: Sequence[Tensor]) -> list[list[int]]:
        """Returns the channels of each group with the lowest scores (channels,), all but as many as stay."""
        return [
            score.argsort()[: group.channels - count].tolist()
            for group, count, score in zip(self.groups, left, scores, strict=True)
        ]

    def remove(self, gone: Sequence[Sequence[int]]) -> tuple[Kept, dict[str, str]]:
        """Removes the channels `gone` of each group, in place.

        Returns the remaining filters of layers that lost some, and the layers without which the network does not run,
        with the reasons; these keep their filters. Frozen parameters stay frozen.
        """
        with requiring_gradients(self.network), torch.enable_grad():
            kept, refused = remove_choices(self.graph, self._choices(gone), self.network, self.example)
        return (
            {self._names[layer]: filters for layer, filters in kept.items()},
            {self._names[layer]: reason for layer, reason in refused.items()},
        )

    def pruned_copy(self, left: Sequence[int], scores: Sequence[Tensor]) -> tuple[nn.Module, Kept]:
        """Returns a copy of the network without the lowest channels, and its remaining filters as `remove` does."""
        with self._restored():
            kept, _ = self.remove(self.lowest(left, scores))
            return copy.deepcopy(self.network), kept

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """Makes the network whole again after a block that prunes it."""
        whole = graph_state(self.graph)
        frozen = [parameter for parameter in self.network.parameters() if not parameter.requires_grad]
        try:
            yield
        finally:
            set_state(whole)
            for parameter in frozen:  # `remove` froze those that took their places
                parameter.requires_grad_(False)

    def _leave_out_refused(self) -> None:
        """Removes half of all channels to find the groups without which the network does not run, and fixes those.

        No search could count on what `remove` then refuses.
        """
        with self._restored():
            half = [group.channels - group.allowed(group.channels / 2) for group in self.groups]
            _, refused = self.remove([range(count) for count in half])
        self.fixed |= refused
        self.groups = [group for group in self.groups if not refused.keys() & set(group.layers)]

    def _choices(self, gone: Sequence[Sequence[int]]) -> list["Choice"]:
        """Returns the filters to remove, one choice for each of torch-pruning's groups."""
        places: dict[int, list[int]] = {}
        owners = {id(group.group): group for group in self.groups}
        for group, channels in zip(self.groups, gone, strict=True):
            places.setdefault(id(group.group), []).extend(group.places[list(channels)].tolist())
        choices = []
        for key, group in owners.items():
            if places[key]:
                root, size = group.group[0].dep, len(group.group[0].idxs) // group.parts
                numbers = [number + part * size for part in range(group.parts) for number in places[key]]
                choices.append(Choice(root.target.module, root.handler, sorted(numbers)))
        return choices

    def _split(self, group: Group, round_to: int) -> list[ChannelGroup]:
        """Splits a group by the layers that compute its channels.

        A gate on a concatenation is coupled with all its parts: without this, one part could lose all its channels.
        """
        parts = _parts(group)
        size = len(group[0].idxs) // parts
        makers: list[set[str]] = [set() for _ in range(size)]
        for item in group:
            name = self._names.get(item.dep.target.module)
            if isinstance(item.dep.target.module, LAYERS) and _prunes_filters(group, item) and name is not None:
                for place in item.root_idxs:
                    makers[place % size].add(name)
        places: dict[frozenset[str], list[int]] = {}
        for place, names in enumerate(makers):
            places.setdefault(frozenset(names), []).append(place)
        step = round_to // math.gcd(round_to, parts)  # the width is `parts` times as much
        order = [name for name in self._names.values() if name in set().union(*places)]
        return [
            ChannelGroup(
                group,
                torch.tensor(those),
                parts,
                [name for name in order if name in names],
                self._losses(group, those, size),
                step,
            )
            for names, those in places.items()
        ]

    def _losses(self, group: Group, places: list[int], size: int) -> dict[tuple[str, str], float]:
        wanted, losses = set(places), {}
        for item in group:
            name = self._names.get(item.dep.target.module)
            if name in self.before:
                side = "out" if group._DG.is_out_channel_pruning_fn(item.dep.handler) else "in"
                losses[name, side] = sum(place % size in wanted for place in item.root_idxs) / len(places)
        return losses

    def _narrowed(self, name: str, width: list[int], lost: dict[tuple[str, str], float]) -> list[int]:
        outputs = width[0] - round(lost.get((name, "out"), 0))
        if len(width) == 1:
            return [outputs]
        if len(width) == 3 and width[2] == width[1] == width[0] > 1:  # depthwise
            return [outputs] * 3
        return [outputs, width[1] - round(lost.get((name, "in"), 0)), *width[2:]]


def _prunes_filters(group: Group, item: Any) -> bool:
    return item.dep.handler == group._DG.get_pruner_of_module(item.dep.target.module).prune_out_channels


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
        if not isinstance(module, LAYERS):
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
