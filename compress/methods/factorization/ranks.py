"""Finds the layers of a network that can be factorized, the ranks that save work, and what they cost."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.methods.factorization.factors import TUCKER
from compress.methods.factorization.layers import Factors, factor_layers, kind_of, replace_layer
from compress.methods.pruning.cost import Cost, macs_cost, params_cost
from compress.methods.pruning.receptive import computes_weight
from compress.methods.pruning.refit_targets import repeated
from compress.models.graph.tracing import trace
from compress.models.layer_calls import LAYERS, LayerCall, call_order, layer_calls
from compress.models.widths import read_widths

_TINY = 0.01  # share of the network's MACs and parameters: a last layer below stays as it is


@dataclass(frozen=True)
class LayerRanks:
    """The ranks of a layer that save MACs. The number `channels` stands for the layer as it is."""

    layer: str
    kind: str
    channels: int  # the first multiple of `step` at which no MAC is saved
    step: int
    inputs: int  # the channels that the layer reads
    outputs: int

    @property
    def layers(self) -> list[str]:
        """The layer, as groups of channels list theirs."""
        return [self.layer]

    def allowed(self, left: float) -> int:
        """Returns the nearest rank below `left`, or the lowest."""
        return min(self.channels, max(int(left) // self.step * self.step, self.step))

    def factors(self, rank: int) -> Factors | None:
        """Returns the factors of that rank; None where the layer stays as it is."""
        if rank >= self.channels:
            return None
        if self.kind != TUCKER:
            return Factors(self.kind, (rank,))
        steps = round(rank * self.inputs / self.outputs / self.step)  # both sides shrink alike
        return Factors(self.kind, (min(self.inputs, max(1, steps) * self.step), rank))


class FactorizableNetwork:
    """A network with the ranks of its layers. `left_out` names layers that stay as they are, with the reasons."""

    def __init__(self, network: nn.Module, example: Tensor, method: str, round_to: int = 8):
        """Runs `network` on `example` (1, C, H, W); ranks will be multiples of `round_to`."""
        self.network, self.example = network, example
        self.before = read_widths(network)
        self.calls = layer_calls(network, example)
        self.left_out = _left_out(network, example, self.calls)
        self.groups: list[LayerRanks] = []
        order = self._layers_in_order()
        for name in (name for name in order if name not in self.left_out):
            ranks = _ranks_of(name, network.get_submodule(name), self.calls[name], method, round_to)
            if ranks.channels > round_to:
                self.groups.append(ranks)
            else:
                self.left_out[name] = f"no rank that is a multiple of {round_to} saves a MAC"
        self._leave_out_tiny_last_layer(order[-1])
        self.twin = self._with_all_factorized()
        self.calls |= {
            name: calls for name, calls in layer_calls(self.twin, example).items() if name not in self.before
        }

    def factors(self, left: Sequence[int]) -> dict[str, Factors]:
        """Returns the factors of the layers that do not stay as they are, by name."""
        found = {group.layer: group.factors(rank) for group, rank in zip(self.groups, left, strict=True)}
        return {name: factors for name, factors in found.items() if factors is not None}

    def widths(self, left: Sequence[int]) -> dict[str, list[int]]:
        """Returns the widths of all layers and factors, as `read_widths` does of the factorized network."""
        ranks = {group.layer: (group, rank) for group, rank in zip(self.groups, left, strict=True)}
        widths: dict[str, list[int]] = {}
        for name, width in self.before.items():
            widths |= self.layer_widths(*ranks[name]) if name in ranks else {name: width}
        return widths

    def layer_widths(self, group: LayerRanks, rank: int) -> dict[str, list[int]]:
        """Returns the widths of the factors of one layer, or its own where it stays as it is."""
        width, factors = self.before[group.layer], group.factors(rank)
        if factors is None:
            return {group.layer: width}
        channels = [width[1], *factors.ranks, width[0]]
        pairs = zip(channels[1:], channels[:-1], strict=True)
        return {f"{group.layer}.{at}": [*pair, *width[2:]] for at, pair in enumerate(pairs)}

    def macs(self, total: float) -> Cost:
        """Returns the MACs of one image, where the whole network has `total`; some are outside of layers."""
        layers = macs_cost(self.calls)
        return Cost(layers.of_layer, total - layers.of(self.before))

    def params(self) -> Cost:
        """Returns the number of parameters."""
        return params_cost(self.network, self.twin)

    def rows(self, left: Sequence[int]) -> list[dict[str, object]]:
        """Returns what stage.json says of each layer: its kind and ranks, and the rank at which nothing is saved."""
        return [
            {"layer": group.layer, "kind": group.kind, "ranks": list(factors.ranks), "of": group.channels}
            for group, rank in zip(self.groups, left, strict=True)
            if (factors := group.factors(rank)) is not None
        ]

    def _layers_in_order(self) -> list[str]:
        """Returns the names of the layers, in the order in which they run."""
        names = {module: name for name, module in self.network.named_modules() if isinstance(module, LAYERS)}
        return [names[module] for module in call_order(self.network, self.example, names)]

    def _leave_out_tiny_last_layer(self, last: str) -> None:
        """Leaves out the layer that returns the outputs, where it is too small to be worth an error there."""
        if not self.groups:
            return
        widths = {last: self.before[last]}
        macs, params = macs_cost(self.calls), params_cost(self.network)
        shares = (
            macs.of(widths) / max(1, macs.of(self.before)),
            params.of_layer(last, self.before[last]) / params.of(self.before),
        )
        if self.groups[-1].layer == last and max(shares) < _TINY:
            self.groups.pop()
            self.left_out[last] = "it returns the outputs, and has less than 1 % of the network's MACs and parameters"

    def _with_all_factorized(self) -> nn.Module:
        """Returns a copy with all layers at their lowest ranks: its factors have the shapes and calls of any rank.

        Layers whose attributes the network reads elsewhere, so that it does not run without them, are left out.
        """
        whole = copy.deepcopy(self.network)
        layers = {group.layer: whole.get_submodule(group.layer) for group in self.groups}
        lowest = {group.layer: group.factors(group.step) for group in self.groups}

        def use(name: str, factorized: bool) -> None:
            factors = lowest[name]
            new = factor_layers(layers[name], factors) if factorized and factors else layers[name]
            replace_layer(whole, name, new)

        for name in layers:
            use(name, True)
        if not _refusal(whole, self.example):
            return whole
        for name in layers:
            use(name, False)
        for name in layers:  # one after the other, to find those that it does not run without
            use(name, True)
            if reason := _refusal(whole, self.example):
                use(name, False)
                self.left_out[name] = f"the network does not run without it: {reason}"
        self.groups = [group for group in self.groups if group.layer not in self.left_out]
        return whole


def _refusal(network: nn.Module, example: Tensor) -> str:
    """Returns why `network` does not run on `example`; empty where it does."""
    try:
        with torch.no_grad():
            network.eval()(example)
    except Exception as error:  # the network's code is the user's, and so are its errors
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def _ranks_of(name: str, layer: nn.Module, calls: list[LayerCall], method: str, step: int) -> LayerRanks:
    kind = kind_of(layer, method)
    outputs, inputs = layer.weight.shape[:2]
    before = sum(call.macs(outputs, inputs, 1) for call in calls)
    whole = LayerRanks(name, kind, before + 1, step, inputs, outputs)  # no rank saves a MAC up there
    rank = step
    while _macs(layer, whole.factors(rank), calls[0]) < before:
        rank += step
    return replace(whole, channels=rank)


def _macs(layer: nn.Module, factors: Factors | None, call: LayerCall) -> int:
    """Returns the MACs of the factors of a layer for one call."""
    if factors is None:
        raise ValueError("received a layer as it is; expected factors")
    shape = (1, *call.size, layer.weight.shape[1]) if call.linear else (1, layer.weight.shape[1], *call.size)
    with torch.device("meta"):
        layers = factor_layers(copy.deepcopy(layer).to("meta"), factors)
        return sum(
            each.macs(part.weight.shape[0], part.weight.shape[1], 1)
            for part, found in zip(layers, layer_calls(layers, torch.zeros(shape)).values(), strict=True)
            for each in found
        )


def _left_out(network: nn.Module, example: Tensor, calls: dict[str, list[LayerCall]]) -> dict[str, str]:
    """Returns the layers that cannot be factorized, with the reasons."""
    graph = trace(network.eval(), example)
    reached, often = {node.target for node in graph.nodes if node.op == "call_module"}, repeated(graph)
    owners: dict[int, int] = {}
    for module in network.modules():
        for value in module.parameters(recurse=False):
            owners[id(value)] = owners.get(id(value), 0) + 1
    reasons = {}
    for name, found in calls.items():
        layer = network.get_submodule(name)
        if not found:
            reasons[name] = "it is not called as a layer in eval mode: its weight is read elsewhere, or not at all"
        elif getattr(layer, "groups", 1) > 1:
            reasons[name] = "a convolution in groups: each filter reads few channels"
        elif type(layer) not in LAYERS or computes_weight(layer) or getattr(layer, "padding_mode", "zeros") != "zeros":
            reasons[name] = "it is more than a plain layer: its class, its weight or its padding is computed"
        elif owners[id(layer.weight)] > 1:
            reasons[name] = "it shares its weight with another layer"
        elif len(found) > 1 or name in often:
            reasons[name] = "it is called more than once"
        elif name not in reached:
            reasons[name] = "a block around it branches on values, or changes values in place"
    return reasons
