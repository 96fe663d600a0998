"""Runs sub-networks with the weights of the whole network, of which each takes the most important channels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.pruning.channel_groups import ChannelGroup
from compress.methods.pruning.least_squares import is_depthwise
from compress.models.input_size import set_input_size
from compress.models.sub_network import cut_padding


@dataclass(frozen=True)
class _Places:
    """Where the channels of a group are in one dimension of a layer's tensors, in the order of importance."""

    layer: str
    dim: int
    positions: Tensor  # (P,)
    ranks: Tensor  # (P,): 0 is the most important channel


class SharedWeights:
    """The sub-networks of a space as prefixes of one order of channels, as in slimmable networks (Yu & Huang 2019)."""

    def __init__(self, space: SearchSpace, scores: Sequence[Tensor]):
        """Orders the channels of each group by `scores` (channels,), the highest first."""
        self._network, self._groups = space.network, space.prunable.groups
        self._widths = space.prunable.before
        self._modules = dict(space.network.named_modules())
        # These change in train mode: a sub-network gets copies.
        self._with_statistics = [
            name for name, module in self._modules.items() if getattr(module, "running_mean", None) is not None
        ]
        names = {module: name for name, module in self._modules.items()}
        self._places = [
            _places(group, score, names, self._widths) for group, score in zip(self._groups, scores, strict=True)
        ]

    def run(self, candidate: Candidate, images: Tensor) -> object:
        """Returns the output of a sub-network for `images` (N, C, H, W), in the mode of the whole network.

        Gradients reach the shared weights; statistics of batch norm are not changed.
        """
        kept = self._kept(candidate)
        kernels = dict(candidate.kernels)
        tensors = {
            f"{layer}.{name}": self._cut(layer, name, value, kept.get(layer, {}), kernels.get(layer))
            for layer in {*kept, *kernels, *self._with_statistics}
            for name, value in self._tensors(layer)
        }
        with self._shaped(candidate, kept), self._resizing(candidate, images):
            return functional_call(self._network, tensors, (images,))

    def _tensors(self, layer: str) -> Iterator[tuple[str, Tensor]]:
        module = self._modules[layer]
        yield from module.named_parameters(recurse=False)
        yield from module.named_buffers(recurse=False)

    def _kept(self, candidate: Candidate) -> dict[str, dict[int, Tensor]]:
        """Returns the positions that stay in each dimension of each layer that loses some."""
        stays: dict[tuple[str, int], Tensor] = {}
        for group, places, count in zip(self._groups, self._places, candidate.left, strict=True):
            for place in places if count < group.channels else []:
                key, size = (place.layer, place.dim), self._widths[place.layer][place.dim]
                stays.setdefault(key, torch.ones(size, dtype=torch.bool))[place.positions[place.ranks >= count]] = False
        kept: dict[str, dict[int, Tensor]] = {}
        for (layer, dim), mask in stays.items():
            own = mask[: self._modules[layer].weight.shape[1]] if dim else mask  # of one group, where there are several
            kept.setdefault(layer, {})[dim] = own.nonzero().flatten()
        return kept

    def _cut(self, layer: str, name: str, value: Tensor, kept: dict[int, Tensor], kernel: int | None) -> Tensor:
        """Returns the part of a layer's tensor that a sub-network uses; buffers are copied."""
        for dim, positions in kept.items():
            if dim < value.ndim and not (dim == 1 and is_depthwise(self._modules[layer])):
                value = value.index_select(dim, positions.to(value.device))
        if kernel is not None and value.ndim == 4:
            rim = (value.shape[-1] - kernel) // 2
            value = value[..., rim : rim + kernel, rim : rim + kernel]
        return value if value.requires_grad else value.clone()

    @contextmanager
    def _resizing(self, candidate: Candidate, images: Tensor) -> Iterator[None]:
        """Lets the network resize its images in a block, where the sub-network does."""
        before = self._network._forward_pre_hooks.copy()
        if candidate.input_size:
            set_input_size(self._network, tuple(images.shape[1:]), (candidate.input_size, candidate.input_size))
        try:
            yield
        finally:
            self._network._forward_pre_hooks = before

    @contextmanager
    def _shaped(self, candidate: Candidate, kept: dict[str, dict[int, Tensor]]) -> Iterator[None]:
        """Gives layers the attributes of a sub-network in a block, and lets blocks that are left out pass on inputs."""
        before = []
        for layer, dims in kept.items():
            module = self._modules[layer]
            if is_depthwise(module) and 0 in dims:
                before.append((module, "groups", module.groups))
                module.groups = len(dims[0])
        for layer, size in candidate.kernels:
            module = self._modules[layer]
            before.append((module, "padding", module.padding))
            cut = cut_padding(module, size)
            module.padding = (module.padding[0] - cut[0], module.padding[1] - cut[1])
        blocks = [self._modules[name] for name in candidate.without]
        for block in blocks:
            block.forward = _pass_on
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)
            for block in blocks:
                del block.forward


def _pass_on(x: Tensor) -> Tensor:
    return x


def _places(
    group: ChannelGroup, score: Tensor, names: dict[nn.Module, str], layers: dict[str, list[int]]
) -> list[_Places]:
    """Returns where the channels of a group are in the tensors of layers."""
    size = len(group.group[0].idxs) // group.parts
    ranks = torch.empty(len(score), dtype=torch.long)
    ranks[score.argsort().flip(0)] = torch.arange(len(score))
    rank_of = dict(zip(group.places.tolist(), ranks.tolist(), strict=True))
    found = []
    for item in group.group:
        name = names.get(item.dep.target.module)
        if name not in layers:
            continue
        is_output = group.group._DG.is_out_channel_pruning_fn(item.dep.handler)
        pairs = [
            (at, rank_of[root % size])
            for at, root in zip(item.idxs, item.root_idxs, strict=True)
            if root % size in rank_of
        ]
        if pairs:
            positions, order = (torch.tensor(column) for column in zip(*pairs, strict=True))
            dim = 0 if is_output or len(layers[name]) == 1 else 1
            found.append(_Places(name, dim, positions, order))
    return found
