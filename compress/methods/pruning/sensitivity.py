"""Measures how much a network's outputs change when one group of channels shrinks, after the layers are refitted."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from compress.methods.pruning.allocation import Curve
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.reconstruction import Reference
from compress.utils.console import progress

log = logging.getLogger("compress")

_SHARES = (0.85, 0.7, 0.5, 0.3, 0.15)  # of a group's channels that stay; distances in between are interpolated


class Grouped(Protocol):
    """A network with groups of channels that go together, or with the ranks of its layers."""

    @property
    def groups(self) -> Sequence[Any]:
        """The groups, each with `layers` and `channels`."""
        ...


@dataclass
class Sensitivity:
    """The curve of each group; an empty one where nothing of it can go."""

    images: int
    curves: Sequence[Curve]
    seconds: float
    counted: str = "filters"  # what stage.json calls the number that a group has: "filters", or "ranks" of a layer

    def table(self, network: Grouped, left: Sequence[int]) -> dict[str, Any]:
        """Returns what stage.json says of it; `left` channels of each group of `network` stay in the end."""
        return {
            "images": self.images,
            "distance": "nats",
            "seconds": round(self.seconds, 1),
            "groups": [
                {"layers": group.layers, self.counted: group.channels, "left": count, "curve": [list(x) for x in curve]}
                for group, curve, count in zip(network.groups, self.curves, left, strict=True)
                if curve
            ],
        }


def measure_sensitivity(
    prunable: PrunableNetwork,
    scores: Sequence[Tensor],
    free: Sequence[bool],
    images: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Sensitivity:
    """Prunes each group that is `free` alone to several widths, refits, and measures the distance from the original.

    `images` (N, C, H, W) are those of the refit and of the distance, (outputs, reference) -> (N,), whose mean counts.
    """
    start = time.perf_counter()
    reference = Reference(prunable.network, images)
    whole = [group.channels for group in prunable.groups]
    tries = {
        number: sorted({group.allowed(share * group.channels) for share in _SHARES} - {group.channels}, reverse=True)
        for number, group in enumerate(prunable.groups)
        if free[number]
    }
    curves: list[list[tuple[int, float]]] = [[] for _ in whole]
    with progress("sensitivity", sum(map(len, tries.values()))) as bar:
        for number, counts in tries.items():
            bar.note(prunable.groups[number].layers[0])
            for count in counts:
                left = [*whole[:number], count, *whole[number + 1 :]]
                outputs = reference.refitted_outputs(*prunable.pruned_copy(left, scores))
                curves[number].append((count, distance(outputs, reference.outputs).mean().item()))
                bar.advance()
            if counts:
                curves[number].insert(0, (whole[number], 0.0))
    seconds = time.perf_counter() - start
    log.info("prune: sensitivity of %d groups on %d images, %.0f s", len(tries), len(reference.images), seconds)
    return Sensitivity(len(reference.images), curves, seconds)
