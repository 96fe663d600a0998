"""Selects for each image the logits of the first end that is sure of it, as the exported files do."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

INITIAL_THRESHOLD = 0.9  # while a network is trained, so that validation shows a mix of its ends


class Exit(Protocol):
    """What decides for an end but the last one."""

    def confident(self, logits: Tensor) -> Tensor:
        """Returns whether it is sure of an image, (N, 1), from its logits (N, K)."""
        ...


class Ends(Protocol):
    """A network with several ends, in eval mode."""

    def ends(self, images: Tensor) -> Sequence[Tensor]:
        """Returns the logits (N, K) of each end for images (N, C, H, W), in the order in which they are computed."""
        ...


def confident(logits: Tensor, temperature: Tensor, threshold: Tensor) -> Tensor:
    """Returns whether the probability of the likeliest class is at least `threshold`, (N, 1); `logits` are (N, K).

    `temperature` divides the logits so that their softmax is calibrated.
    """
    return (logits / temperature).softmax(1).amax(1, keepdim=True) >= threshold


def select(ends: Sequence[Tensor], exits: Sequence[Exit]) -> Tensor:
    """Returns the logits (N, K) of the first of `ends` whose exit is sure of an image, else of the last one."""
    *early, chosen = ends
    for exit, logits in reversed(list(zip(exits, early, strict=True))):
        chosen = torch.where(exit.confident(logits), logits, chosen)
    return chosen


def set_choice(network: nn.Module, temperatures: Sequence[float], thresholds: Sequence[float]) -> None:
    """Writes the temperature and the threshold of each of a network's `exits`, or of its captured graph's."""
    for at, (temperature, threshold) in enumerate(zip(temperatures, thresholds, strict=True)):
        network.get_buffer(f"exits.{at}.temperature").fill_(temperature)
        network.get_buffer(f"exits.{at}.threshold").fill_(threshold)
