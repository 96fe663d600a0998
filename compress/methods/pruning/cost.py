"""Computes what a network costs from its widths alone, so that a search need not prune to know."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from compress.models.layer_calls import LAYERS, LayerCall
from compress.models.widths import read_widths

Widths = Mapping[str, list[int]]  # as `read_widths` returns them


@dataclass(frozen=True)
class Cost:
    """A cost that is a sum over layers: MACs, parameters, bytes or milliseconds."""

    of_layer: Callable[[str, list[int]], float]  # (layer, its width) -> its share of the cost
    rest: float = 0.0  # what no width changes
    # Called with widths of each layer that will be asked for, so that what has to be measured is measured at once.
    prepare: Callable[[Mapping[str, list[list[int]]]], None] = lambda widths: None

    def of(self, widths: Widths) -> float:
        """Returns the cost of a network with these widths."""
        self.prepare({name: [width] for name, width in widths.items()})
        return self.rest + sum(self.of_layer(name, width) for name, width in widths.items())


def macs_cost(calls: dict[str, list[LayerCall]]) -> Cost:
    """Returns the multiply-accumulates of all layers for one image."""

    def of_layer(name: str, width: list[int]) -> float:
        return sum(call.macs(width[0], width[1], _groups(width)) for call in calls.get(name, []))

    return Cost(of_layer)


def params_cost(network: nn.Module, other: nn.Module | None = None) -> Cost:
    """Returns the number of parameters; `other` has the layers that a search may put in place of some of `network`."""
    return _per_weight(network, weight=1, filters=0, norms=True, other=other)


def bytes_cost(network: nn.Module, size_bytes: float, int8: bool, other: nn.Module | None = None) -> Cost:
    """Returns the size of the network's file in bytes, where that of the whole network is `size_bytes`.

    Batch norm is folded, so that every filter has a bias of four bytes; in int8 the filter and its bias have a scale of
    four bytes each. The graph around the weights, and the zero points that layers share, do not depend on widths.
    `other` is that of `params_cost`.
    """
    return _per_weight(network, 1 if int8 else 4, 12 if int8 else 4, norms=False, total=size_bytes, other=other)


def _per_weight(
    network: nn.Module,
    weight: int,
    filters: int,
    norms: bool,
    total: float | None = None,
    other: nn.Module | None = None,
) -> Cost:
    """Returns a cost of `weight` a weight and `filters` a filter; with `norms` that of all other parameters too."""
    sizes: dict[str, tuple[float, float]] = {}  # layer -> weights a pair of channels, other parameters a filter
    modules = (dict(other.named_modules()) if other is not None else {}) | dict(network.named_modules())
    widths = (read_widths(other) if other is not None else {}) | read_widths(network)
    for name, width in widths.items():
        module = modules[name]
        own = sum(value.numel() for value in module.parameters(recurse=False))
        if isinstance(module, LAYERS):
            numel = module.weight.numel()
            bias = (own - numel) / width[0] if norms else 0
            sizes[name] = (weight * numel / (width[0] * width[1] / _groups(width)), filters + bias)
        else:
            sizes[name] = (0, own / width[0] if norms else 0)

    def of_layer(name: str, width: list[int]) -> float:
        pair, each = sizes[name]
        inputs = width[1] / _groups(width) if len(width) > 1 else 0
        return width[0] * (pair * inputs + each)

    return _with_rest(of_layer, network, sum(p.numel() for p in network.parameters()) if total is None else total)


def _groups(width: list[int]) -> int:
    return width[2] if len(width) == 3 else 1


def _with_rest(of_layer: Callable[[str, list[int]], float], network: nn.Module, total: float) -> Cost:
    return Cost(of_layer, total - sum(of_layer(name, width) for name, width in read_widths(network).items()))
