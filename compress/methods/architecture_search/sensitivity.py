"""Measures how much a network's outputs change when one part of it shrinks: channels, a block or a kernel."""

import time
from collections.abc import Sequence

from torch import Tensor

from compress.methods.architecture_search.seeds import Parts
from compress.methods.pruning.allocation import Curve
from compress.methods.pruning.reconstruction import Reference
from compress.methods.pruning.sensitivity import Sensitivity, measure_sensitivity
from compress.methods.pruning.trials import SENSITIVITY_IMAGES, Trials
from compress.utils.console import progress


def part_sensitivity(parts: Parts, scores: Sequence[Tensor], trials: Trials) -> Sensitivity:
    """Returns a curve of each part: the stage prune's of channels, and the distance without a block or with a kernel.

    Each is refitted on the same images, whose outputs are compared with those of the whole network.
    """
    start, space = time.perf_counter(), parts.space
    images = trials.images()[:SENSITIVITY_IMAGES]
    widths = measure_sensitivity(space.prunable, scores, [True] * len(space.groups), images, trials.distance)
    curves: list[Curve] = list(widths.curves)
    singles = list(parts.singles())
    found: dict[int, list[tuple[int, float]]] = {}
    if not singles:
        return widths
    reference = Reference(space.network, images)
    with progress("sensitivity", len(singles)) as bar:
        for number, count in singles:
            whole = parts.whole
            network, kept = space.build(parts.candidate([*whole[:number], count, *whole[number + 1 :]]), scores)
            outputs = reference.refitted_outputs(network, kept)
            distance = trials.distance(outputs, reference.outputs).mean().item()
            found.setdefault(number, [(whole[number], 0.0)]).append((count, distance))
            bar.advance()
    curves += [found[number] for number in range(len(curves), len(parts.all))]
    return Sensitivity(widths.images, curves, time.perf_counter() - start)
