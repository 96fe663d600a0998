"""Finds what can change in a network, and builds sub-networks: fewer channels or blocks, smaller kernels or images."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from compress.methods.architecture_search.candidate import Candidate
from compress.methods.pruning.channel_groups import ChannelGroup, Kept, PrunableNetwork
from compress.methods.pruning.cost import Cost, macs_cost, params_cost
from compress.methods.pruning.receptive import computes_weight
from compress.models.graph.residual_blocks import residual_blocks
from compress.models.input_size import resize_input, set_input_size
from compress.models.layer_calls import LAYERS, layer_calls
from compress.models.sub_network import cut_kernels, kernel_sizes, replace_by_identities
from compress.utils.errors import UserError

MOST_WIDTHS = 32  # of a group: finer ones save less than a layer's kernels can use
FEW_WIDTHS = 8  # where each pair of them has to be timed


@dataclass(frozen=True)
class WidthGroup:
    """Channels that go together, and how many of them may stay: `widths`, the smallest first."""

    layers: list[str]  # that lose a filter with a channel
    reads: frozenset[str]  # the layers whose cost depends on their number, these among them
    channels: int
    step: int
    widths: tuple[int, ...]

    def allowed(self, left: float) -> int:
        """Returns the nearest number of channels below `left` that may stay."""
        return max((width for width in self.widths if width <= left), default=self.widths[0])


class SearchSpace:
    """The sub-networks of a network.

    Layers with another kernel, or on images of another size, count as layers of other names, as costs see them.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        round_to: int = 1,
        most_widths: int = MOST_WIDTHS,
        input_sizes: Sequence[int] = (),
    ):
        """Traces `network` on `example` (1, C, H, W).

        Widths will be multiples of `round_to`, and each group of channels has at most `most_widths` of them. Raises
        UserError for an input size, pixels a side, that the network does not accept, or that is not smaller than its.
        """
        self.network, self.example, self._most_widths = network, example, most_widths
        self.prunable = PrunableNetwork(network, example, round_to)
        self.groups = [_width_group(group, most_widths) for group in self.prunable.groups]
        self.blocks = residual_blocks(network, example)
        self.calls = layer_calls(network, example)
        self.kernels = {
            name: sizes
            for name, calls in self.calls.items()
            if calls and (sizes := kernel_sizes(network.get_submodule(name))) and not _computes(network, name)
        }
        self.input_sizes = sorted(set(input_sizes))
        self._layer_of: dict[str, str] = {}
        self.twin = nn.Module()  # has the layers that may take the place of others
        self._add_variants(network, None)
        for size in self.input_sizes:
            self._add_variants(_resized(network, example, size), size)

    @property
    def whole(self) -> Candidate:
        """Returns the network as it is."""
        return Candidate(tuple(group.channels for group in self.groups))

    @property
    def smallest(self) -> Candidate:
        """Returns the smallest sub-network."""
        kernels = {name: min(sizes) for name, sizes in self.kernels.items()}
        size = min(self.input_sizes, default=None)
        return self.candidate([group.allowed(0) for group in self.groups], self.blocks, kernels, size)

    def candidate(
        self,
        left: Iterable[int],
        without: Iterable[str] = (),
        kernels: Mapping[str, int] | None = None,
        input_size: int | None = None,
    ) -> Candidate:
        """Returns a candidate without what makes no difference: widths and kernels inside blocks that are left out."""
        gone = set(without)
        blocks = tuple(name for name in self.blocks if name in gone)
        widths = tuple(
            group.channels if all(_is_inside(layer, blocks) for layer in group.layers) else count
            for group, count in zip(self.groups, left, strict=True)
        )
        sizes = (kernels or {}).items()
        cut = {name: size for name, size in sizes if size < self.kernels[name][0] and not _is_inside(name, blocks)}
        return Candidate(widths, blocks, tuple(sorted(cut.items())), input_size)

    def widths(self, candidate: Candidate) -> dict[str, list[int]]:
        """Returns the widths of the layers of a candidate, from which its costs follow."""
        sizes = dict(candidate.kernels)
        return {
            self._name(name, sizes.get(name), candidate.input_size): width
            for name, width in self.prunable.widths(candidate.left).items()
            if not _is_inside(name, candidate.without)
        }

    def options(self) -> dict[str, list[list[int]]]:
        """Returns the widths that each layer can have, by the names that costs know."""
        shares = [at / self._most_widths for at in range(1, self._most_widths + 1)]
        corners = [
            self.prunable.widths([group.allowed(share * group.channels) for group in self.groups]) for share in shares
        ]
        options = {}
        for name, width in self.prunable.before.items():
            free = len(width) < 2 or width[0] == width[-1]  # norms and depthwise convolutions have one side
            pairs = [(one, other) for one in corners for other in corners if one is other or not free]
            options[name] = [[one[name][0], *other[name][1:]] for one, other in pairs]
        return options | {variant: options[name] for variant, name in self._layer_of.items()}

    def layer_of(self, name: str) -> str:
        """Returns the layer that costs know by this name."""
        return self._layer_of.get(name, name)

    def macs(self, total: float) -> Cost:
        """Returns the MACs of one image, where the whole network has `total`; some are outside of layers."""
        layers = macs_cost(self.calls)
        return replace(layers, rest=total - layers.of(self.widths(self.whole)))

    def params(self) -> Cost:
        """Returns the number of parameters."""
        return params_cost(self.network, self.twin)

    def build(self, candidate: Candidate, scores: Sequence[Tensor]) -> tuple[nn.Module, Kept]:
        """Returns a copy of the network cut down to a candidate, and the remaining filters of layers that lost some.

        The channels with the highest `scores` (channels,) of each group stay; weights keep their values.
        """
        network, kept = self.prunable.pruned_copy(candidate.left, scores)
        replace_by_identities(network, candidate.without)
        cut_kernels(network, dict(candidate.kernels))
        if candidate.input_size:
            self.resize(network, candidate.input_size)
        return network, {name: filters for name, filters in kept.items() if not _is_inside(name, candidate.without)}

    def resize(self, network: nn.Module, input_size: int) -> None:
        """Lets `network`, in place, resize its images to so many pixels a side."""
        set_input_size(network, tuple(self.example.shape[1:]), (input_size, input_size))

    def _add_variants(self, network: nn.Module, input_size: int | None) -> None:
        """Adds the layers of `network`, which has that input size, with each of their kernels."""
        kernels = {name: sizes[1:] for name, sizes in self.kernels.items()}
        for size in {None, *(size for sizes in kernels.values() for size in sizes)}:
            cut = {name: size for name, sizes in kernels.items() if size in sizes}
            other = cut_kernels(copy.deepcopy(network), cut)
            calls = layer_calls(other, self.example)
            for name in cut if size else calls:
                if size is None and input_size is None:
                    continue  # the layer as it is
                variant = _variant(name, size, input_size)
                self.twin.add_module(variant, other.get_submodule(name))
                self.calls[variant], self._layer_of[variant] = calls[name], name

    def _name(self, layer: str, kernel: int | None, input_size: int | None) -> str:
        """Returns the name under which costs know a layer with a kernel and an input of these sizes."""
        variant = _variant(layer, kernel, input_size)
        return variant if variant in self._layer_of else layer


def _variant(layer: str, kernel: int | None, input_size: int | None) -> str:
    parts = [layer.replace(".", "/")]
    parts += [f"{kernel}x{kernel}"] if kernel else []
    parts += [f"of {input_size} pixels"] if input_size else []
    return " ".join(parts)


def _resized(network: nn.Module, example: Tensor, size: int) -> nn.Module:
    """Returns a copy that resizes its images."""
    side = min(example.shape[2:])
    if size >= side:
        raise UserError(
            f"search_architecture.input_sizes with {size}, and images of {side} pixels",
            "sizes that are smaller",
            "remove it",
        )
    copied = copy.deepcopy(network)
    resize_input(copied, example, (size, size))
    return copied


def _width_group(group: ChannelGroup, most_widths: int) -> WidthGroup:
    widths = {group.allowed(group.channels * at / most_widths) for at in range(1, most_widths + 1)}
    reads = frozenset(name for name, _ in group.losses)
    return WidthGroup(group.layers, reads, group.channels, group.step, tuple(sorted(widths | {group.channels})))


def _is_inside(layer: str, blocks: Iterable[str]) -> bool:
    return any(layer.startswith(f"{block}.") for block in blocks)


def _computes(network: nn.Module, name: str) -> bool:
    module = network.get_submodule(name)
    return isinstance(module, LAYERS) and computes_weight(module)
