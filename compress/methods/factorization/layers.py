"""Replaces a layer of a network by its factors, and repeats that on a new network from a record."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.methods.factorization.factors import SPATIAL, SVD, TUCKER


@dataclass(frozen=True)
class Factors:
    """How a layer is factorized: the decomposition, and the channels between its factors."""

    kind: str  # "svd", "spatial_svd" or "tucker2"
    ranks: tuple[int, ...]  # (rank,), or (inner inputs, inner outputs) of Tucker-2

    def record(self) -> dict[str, Any]:
        """Returns what model.json holds of it."""
        return {"kind": self.kind, "ranks": list(self.ranks)}


def kind_of(layer: nn.Module, method: str) -> str:
    """Returns the decomposition of a layer; `method` is that of convolutions with a kernel of two dimensions."""
    one_pixel = isinstance(layer, nn.Linear) or math.prod(layer.kernel_size) == 1
    return SVD if one_pixel else SPATIAL if min(layer.kernel_size) == 1 else method


def factor_layers(layer: nn.Conv2d | nn.Linear, factors: Factors) -> nn.Sequential:
    """Returns new layers, without values, that compute on the same shapes as `layer` when they run one after the other.

    Only the last one has a bias, where `layer` has one.
    """
    if isinstance(layer, nn.Linear):
        inner = [layer.in_features, *factors.ranks, layer.out_features]
        parts: list[nn.Module] = [_linear(inner[at], inner[at + 1], layer, at == 1) for at in (0, 1)]
        return nn.Sequential(*parts)
    channels = [layer.in_channels, *factors.ranks, layer.out_channels]
    last = len(channels) - 2
    sides = _sides(factors.kind)
    return nn.Sequential(
        *(_convolution(channels[at], channels[at + 1], layer, sides[at], at == last) for at in range(last + 1))
    )


def fill(layers: nn.Sequential, weights: list[Tensor], bias: Tensor | None) -> None:
    """Writes the weights of the factors, and the bias of the last one, into their layers."""
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight)
        if bias is not None:
            layers[-1].bias.copy_(bias)


def replace_layer(network: nn.Module, name: str, layers: nn.Module) -> None:
    """Puts the factors in the place of the layer `name`."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layers)


def rebuild_factorized(network: nn.Module, layers: dict[str, dict[str, Any]]) -> nn.Module:
    """Replaces layers by factors without values; `layers` has `Factors.record` of each by its name."""
    for name, record in layers.items():
        factors = Factors(record["kind"], tuple(record["ranks"]))
        replace_layer(network, name, factor_layers(network.get_submodule(name), factors))
    return network


def _sides(kind: str) -> list[tuple[bool, bool]]:
    """Returns for each factor whether it has the kernel's height, and its width."""
    whole, none = (True, True), (False, False)
    return {SVD: [whole, none], SPATIAL: [(True, False), (False, True)], TUCKER: [none, whole, none]}[kind]


def _convolution(inputs: int, outputs: int, layer: nn.Conv2d, sides: tuple[bool, bool], last: bool) -> nn.Conv2d:
    """Returns a factor with the kernel, stride, padding and dilation of `layer` along its own sides."""

    def own(values: tuple[int, ...], other: int) -> tuple[int, int]:
        height, width = (value if has else other for value, has in zip(values, sides, strict=True))
        return height, width

    return nn.Conv2d(
        inputs,
        outputs,
        own(layer.kernel_size, 1),
        own(layer.stride, 1),
        layer.padding if isinstance(layer.padding, str) else own(layer.padding, 0),
        own(layer.dilation, 1),
        bias=last and layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    ).requires_grad_(layer.weight.requires_grad)


def _linear(inputs: int, outputs: int, layer: nn.Linear, last: bool) -> nn.Linear:
    bias = last and layer.bias is not None
    new = nn.Linear(inputs, outputs, bias, device=layer.weight.device, dtype=layer.weight.dtype)
    return new.requires_grad_(layer.weight.requires_grad)
