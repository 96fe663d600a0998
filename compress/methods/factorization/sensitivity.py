"""Measures how much a network's outputs change when one layer is factorized, at several ranks."""

import copy
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from compress.methods.factorization.ranks import FactorizableNetwork, LayerRanks
from compress.methods.factorization.refit import LayerToFit, decompose_layers
from compress.methods.pruning.reconstruction import Reference
from compress.methods.pruning.refit_targets import without_inplace
from compress.methods.pruning.sensitivity import Sensitivity
from compress.utils.console import progress

log = logging.getLogger("compress")

_SHARES = (0.85, 0.6, 0.4, 0.2)  # of the rank at which nothing is saved; distances in between are interpolated


@torch.no_grad()
def measure_rank_sensitivity(
    factorizable: FactorizableNetwork,
    images: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    refits: bool = True,
) -> Sensitivity:
    """Factorizes each layer alone at several ranks, and measures the distance from the original.

    `images` (N, C, H, W) are those of the refit and of the distance, (outputs, reference) -> (N,), whose mean counts.
    """
    start = time.perf_counter()
    network = factorizable.network
    reference = Reference(network, images)
    tries = [_tried_ranks(group) for group in factorizable.groups]
    curves: list[list[tuple[int, float]]] = []
    with progress("sensitivity", sum(map(len, tries))) as bar:
        for group, ranks in zip(factorizable.groups, tries, strict=True):
            bar.note(group.layer)
            copied = copy.deepcopy(network)
            fitted = _layer_to_fit(reference, group.layer) if refits else None
            curves.append([(group.channels, 0.0)])
            for rank in ranks:
                chosen = {group.layer: factors} if (factors := group.factors(rank)) else {}
                if fitted is None:
                    copied = copy.deepcopy(network)
                    decompose_layers(copied, chosen)
                else:
                    fitted.factorize(copied, chosen[group.layer])
                outputs = reference.changed_outputs(copied, {group.layer})
                curves[-1].append((rank, distance(outputs, reference.outputs).mean().item()))
                bar.advance()
    seconds = time.perf_counter() - start
    log.info("factorize: sensitivity of %d layers on %d images, %.0f s", len(tries), len(reference.images), seconds)
    return Sensitivity(len(reference.images), curves, seconds, counted="ranks")


def _layer_to_fit(reference: Reference, name: str) -> LayerToFit:
    node = next(node for node in reference.graph.nodes if node.op == "call_module" and node.target == name)
    with without_inplace(reference.original):
        return LayerToFit(reference.pair(reference.original, set()), node)


def _tried_ranks(group: LayerRanks) -> list[int]:
    """Returns the ranks to try, the highest first."""
    return sorted({group.allowed(share * group.channels) for share in _SHARES} - {group.channels}, reverse=True)
