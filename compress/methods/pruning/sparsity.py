"""Weakens filters before they go: penalties that pull channels towards zero, with all weights that go with them.

torch-pruning's pruners of the same names are not used: they need its own graph, skip depthwise convolutions, divide by
zero where the channels of a group are alike, and take wrong weights where convolutions in groups read channels.
Its growing_reg pulls at no batch norm, and its bn_scale at layers that keep all their filters too. On a chain of plain
layers the gradients are otherwise equal to theirs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.methods.pruning.channel_groups import ChannelGroup, PrunableNetwork
from compress.models.layer_calls import LAYERS
from compress.utils.errors import UserError

_STRONGEST = 2.0**4  # the pull at a group's weakest channel, as a multiple of that at its strongest
_GROWTH = 0.1  # an epoch, at the weakest channel, as a share of the first coefficient
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass
class _Weight:
    """The part of a layer's weight that belongs to the channels of a group."""

    name: str
    layer: nn.Module
    blocks: int  # of a convolution in groups, which read channels of their own; 1 for the channels that it computes
    is_input: bool
    channels: Tensor  # (K,) the layer's
    places: Tensor  # (K,) their channels in the group

    @property
    def is_trained(self) -> bool:
        """Whether the weight has a gradient."""
        return self.layer.weight.requires_grad

    def sums_of_squares(self) -> Tensor:
        """Returns the sum (K,) of the squared weights of each channel."""
        weight = self._by_channel(self.layer.weight)
        return weight.square().reshape(*weight.shape[:2], -1).sum(2).flatten()[self.channels]

    def pull(self, coefficients: Tensor, to_sign: bool) -> None:
        """Adds `coefficients` (K,) times the weights, or times their signs, to the gradient."""
        weight = self.layer.weight
        if weight.grad is None:  # the loss does not depend on it
            weight.grad = torch.zeros_like(weight)
        by_channel = self._by_channel(weight)
        factors = weight.new_zeros(by_channel.shape[0] * by_channel.shape[1])
        factors[self.channels] = coefficients
        factors = factors.view(*by_channel.shape[:2], *(1,) * (by_channel.ndim - 2))
        self._by_channel(weight.grad).addcmul_(by_channel.sign() if to_sign else by_channel, factors)

    def _by_channel(self, x: Tensor) -> Tensor:
        """Returns `x`, a weight or its gradient, as a view (blocks, channels of a block, ...)."""
        x = x.unflatten(0, (self.blocks, -1))
        return x.movedim(2, 1) if self.is_input else x


@dataclass
class _Group:
    """Channels that are compared with each other."""

    count: int
    weights: list[_Weight]

    def __post_init__(self) -> None:
        places = torch.cat([weight.places for weight in self.weights])
        self._order, self._lengths = places.argsort(stable=True), places.bincount(minlength=self.count)
        self.device = places.device

    def sums_of_squares(self) -> Tensor:
        """Returns the sum (count,) of the squared weights of each channel, over all layers.

        Sorted segments are summed in one order; `scatter_add` on a GPU is not, and processes would drift apart.
        """
        squares = torch.cat([weight.sums_of_squares() for weight in self.weights])
        return torch.segment_reduce(squares[self._order], "sum", lengths=self._lengths, unsafe=True)


class SparsityPenalty:
    """A `compress.training.penalty.GradientPenalty`; `left_out` has a row {layer, reason} for each it does not pull."""

    def __init__(self, groups: list[_Group], method: str, weight: float, left_out: list[dict[str, str]]):
        """Takes the weights that the method pulls. Frozen ones still count in the norms of their group."""
        self.left_out = left_out
        self._groups, self._method, self._weight = groups, method, weight
        self._epoch = 1
        self._coefficients = [torch.full((group.count,), weight, device=group.device) for group in groups]

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        """Lets the coefficients of growing_reg grow, once before each epoch but the first."""
        if self._method == "growing_reg" and epoch > self._epoch:
            self._epoch = epoch
            for coefficients, group in zip(self._coefficients, self._groups, strict=True):
                coefficients += _GROWTH * self._weight * _unimportance(group.sums_of_squares())

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Adds the penalty's gradient to that of the loss."""
        strengths = self._coefficients
        if self._method == "group_norm":
            norms = [group.sums_of_squares().sqrt() for group in self._groups]
            strengths = [self._weight * _STRONGEST ** _unimportance(each) for each in norms]
        for group, strength in zip(self._groups, strengths, strict=True):
            for weight in group.weights:
                if weight.is_trained:
                    weight.pull(strength[weight.places], to_sign=self._method == "bn_scale")

    def tensors(self) -> dict[str, Tensor]:
        """Returns the coefficients of growing_reg and the epoch of their last growth; the others have no state."""
        if self._method != "growing_reg" or not self._groups:
            return {}
        return {"coefficients": torch.cat(self._coefficients), "epoch": torch.tensor(self._epoch)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `tensors` returned."""
        if tensors:
            parts = tensors["coefficients"].split([group.count for group in self._groups])
            for coefficients, part in zip(self._coefficients, parts, strict=True):
                coefficients.copy_(part)
            self._epoch = int(tensors["epoch"])


def sparsity_penalty(prunable: PrunableNetwork, method: str, weight: float) -> SparsityPenalty:
    """Returns the penalty of `method`, whose gradient has the factor `weight`, on the channels that can be pruned.

    group_norm pulls at all weights of a channel, the weaker the channel, the more: by 2 to the power of
    4 (max - norm) / (max - min), over the norms of its group (Fang et al. 2023, "DepGraph", equations 4 and 5,
    arXiv:2301.12900). growing_reg pulls by a coefficient that grows before each epoch by the same measure of the
    squared norms (Wang et al. 2021, "Neural pruning via growing regularization", arXiv:2012.09243). bn_scale is the L1
    norm of batch norm's weights (Liu et al. 2017, "Network slimming"). Raises UserError where bn_scale finds none.
    """
    kinds = (_BATCH_NORM,) if method == "bn_scale" else (*LAYERS, *_NORMS)
    found = [(group, _weights(group, prunable.network, kinds)) for group in prunable.groups]
    groups = [_Group(group.channels, weights) for group, weights in found if weights]
    if method == "bn_scale" and not any(weight.is_trained for group in groups for weight in group.weights):
        raise UserError(
            "prune.sparsity=bn_scale for a network in which no layer that can be pruned has batch norm with a weight "
            "that is trained",
            "such a batch norm",
            "set prune.sparsity=group_norm",
        )
    left_out = {
        **{
            name: "no batch norm scales its filters" for group, weights in found if not weights for name in group.layers
        },
        **{
            weight.name: "its weight is frozen" for group in groups for weight in group.weights if not weight.is_trained
        },
    }
    rows = [{"layer": name, "reason": f"{why}: prune.sparsity does not weaken it"} for name, why in left_out.items()]
    return SparsityPenalty(groups, method, weight, rows)


def _weights(group: ChannelGroup, network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[_Weight]:
    """Returns the weights, in layers of these kinds, of all that goes with a channel of the group."""
    names = {module: name for name, module in network.named_modules()}
    place_of = {channel: place for place, channel in enumerate(group.places.tolist())}
    size = len(group.group[0].idxs) // group.parts
    weights = []
    for item in group.group:
        layer = item.dep.target.module
        if not isinstance(layer, kinds) or layer not in names or layer.weight is None:
            continue
        is_input = not group.group._DG.is_out_channel_pruning_fn(item.dep.handler)
        blocks = layer.groups if is_input and isinstance(layer, nn.Conv2d) else 1
        pairs = [(own, place_of.get(root % size)) for own, root in zip(item.idxs, item.root_idxs, strict=True)]
        device = layer.weight.device
        channels = torch.tensor([own for own, place in pairs if place is not None], device=device)
        places = torch.tensor([place for _, place in pairs if place is not None], device=device)
        if len(channels):
            weights.append(_Weight(names[layer], layer, blocks, is_input, channels, places))
    return weights


def _unimportance(norms: Tensor) -> Tensor:
    """Returns 1 for the smallest norm and 0 for the largest; 0 where all are alike."""
    spread = norms.max() - norms.min()
    return (norms.max() - norms) / spread.clamp_min(torch.finfo(norms.dtype).tiny)
