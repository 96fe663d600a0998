"""A network at several widths, of which an image takes the narrowest that is sure of it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.methods.conditional.selection import INITIAL_THRESHOLD, confident, select
from compress.models.widths import set_widths
from compress.training.train_outputs import find_logits


class WidthExit(nn.Module):
    """Decides whether an image goes on to the next width."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(INITIAL_THRESHOLD))

    def confident(self, logits: Tensor) -> Tensor:
        """Returns whether this width is sure of an image, (N, 1), from its logits (N, K)."""
        return confident(logits, self.temperature, self.threshold)


class DynamicWidthNetwork(nn.Module):
    """In eval mode: images (N, C, H, W) -> logits (N, K) of the narrowest width that is sure of an image, or the last.

    In train mode it returns the logits of each width, the narrowest first. torch computes all of them for every image;
    the exported file skips what an image does not need. Each width has weights of its own here: those of a narrower one
    are at first some of the widest's, but scales of int8 and folded norms differ by width.
    """

    def __init__(self, narrower: Sequence[nn.Module], network: nn.Module):
        super().__init__()
        self.narrower = nn.ModuleList(narrower)  # the narrowest first
        self.network = network
        self.exits = nn.ModuleList(WidthExit() for _ in narrower)

    def ends(self, images: Tensor) -> list[Tensor]:
        """Returns the logits (N, K) of each width, the narrowest first."""
        return [find_logits(network(images)) for network in (*self.narrower, self.network)]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the chosen logits in eval mode, and those of all widths in train mode."""
        ends = self.ends(images)
        return tuple(ends) if self.training else select(ends, self.exits)


def rebuild_dynamic_width(network: nn.Module, channels: Sequence[dict[str, list[int]]]) -> DynamicWidthNetwork:
    """Adds narrower networks without trained values; `channels` has the widths of the layers of each."""
    narrower = [copy.deepcopy(network) for _ in channels]
    for narrow, widths in zip(narrower, channels, strict=True):
        set_widths(narrow, widths)
    return DynamicWidthNetwork(narrower, network).eval()
