"""Decides how many filters each layer keeps: by a ratio, or by what the network may cost and lose."""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.allocation import Path, cheapest_path, ratio_path
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.cost import Cost
from compress.methods.pruning.filters import known_scores, own_ratios
from compress.methods.pruning.importance import score_channels
from compress.methods.pruning.limits import currency, limits_of, part_of_the_way
from compress.methods.pruning.reconstruction import reconstruct
from compress.methods.pruning.search import Candidates, TargetSearch
from compress.methods.pruning.sensitivity import Sensitivity, measure_sensitivity
from compress.methods.pruning.trials import SENSITIVITY_IMAGES, Trials

_OPTIONS = 6  # widths of a layer's side whose times are measured before a path is laid; others follow where needed


@dataclass
class Cut:
    """How many channels of each group stay, by which scores, and what stage.json says of the search."""

    left: list[int]
    scores: list[Tensor]
    notes: dict[str, Any] = field(default_factory=dict)  # "target" and "sensitivity", where there are any


def choose_cut(prunable: PrunableNetwork, config: PruneConfig, trials: Trials, step: int = 1) -> Cut:
    """Chooses how many channels of each group stay after `step` of `config.steps`.

    Steps before the last go as large a part of the way as each other, on a logarithmic scale. Raises UserError where
    no network on the way meets the target, with what can be reached.
    """
    start = time.perf_counter()
    asked, progress = config.target.asked(), step / config.steps
    found = score_channels(prunable, config.importance, trials.labelled)
    scores = known_scores(prunable, found)
    own = own_ratios(prunable, config, 1.0 if asked else config.ratio)
    own = [None if ratio is None else 1 - (1 - ratio) ** progress for ratio in own]
    path = ratio_path(prunable.groups, found, config.scope, own, trials.whole.channels(prunable))
    if config.scope != "sensitivity" and not asked:
        return Cut(path(1 - (1 - config.ratio) ** progress), scores)
    limits = limits_of(prunable, config, trials.whole, trials.shipped)
    sensitivity = None
    if config.scope == "sensitivity":
        free = [ratio is None and score is not None for ratio, score in zip(own, found, strict=True)]
        images = trials.images()[:SENSITIVITY_IMAGES]
        sensitivity = measure_sensitivity(prunable, scores, free, images, trials.distance)
        path = sensitivity_path(prunable, sensitivity, path(0.0), currency(limits, prunable, trials.whole))
    now = limits if step == config.steps else part_of_the_way(limits, prunable, 1 / (config.steps - step + 1))
    search = TargetSearch(_candidates(prunable, scores, trials), path, now, trials, asked)
    target = search.run(last=step == config.steps)
    notes: dict[str, Any] = {}
    if asked:
        notes["target"] = {"asked": asked} | target | {"seconds": round(time.perf_counter() - start, 1)}
    if sensitivity:
        notes["sensitivity"] = sensitivity.table(prunable, search.left)
    return Cut(search.left, scores, notes)


def _candidates(prunable: PrunableNetwork, scores: list[Tensor], trials: Trials) -> Candidates:
    """Returns the pruned networks that a search may try."""

    def refitted(left: list[int]) -> nn.Module:
        network, kept = prunable.pruned_copy(left, scores)
        if kept:
            reconstruct(network, prunable.network, kept, trials.images())
        return network

    return Candidates(
        "prune",
        "let more layers lose filters (prune.layer_ratios, prune.round_to)",
        prunable.widths,
        lambda widths: trials.whole.costs(prunable, widths),
        lambda left: prunable.pruned_copy(left, scores)[0],
        refitted,
    )


def sensitivity_path(prunable: PrunableNetwork, sensitivity: Sensitivity, start: list[int], cost: Cost) -> Path:
    """Returns the path that loses the least for each MAC, byte or microsecond that it saves."""
    cost.prepare(_options(prunable))
    layers = [{name for name, _ in group.losses} for group in prunable.groups]
    near = [[number for number, other in enumerate(layers) if other & own] for own in layers]
    known: dict[tuple[int, ...], float] = {}

    def saved(left: list[int], number: int, fewer: int) -> float:
        """Depends on the groups alone whose layers are those of this one, and is asked for again after each step."""
        key = (number, fewer, *(left[other] for other in near[number]))
        if key not in known:
            before = prunable.widths(left)
            after = prunable.widths([*left[:number], fewer, *left[number + 1 :]])
            known[key] = sum(
                cost.of_layer(name, before[name]) - cost.of_layer(name, after[name]) for name in layers[number]
            )
        return known[key]

    return cheapest_path(prunable.groups, sensitivity.curves, start, saved)


def _options(prunable: PrunableNetwork) -> dict[str, list[list[int]]]:
    """Returns widths of each layer that a path comes near: each of its two sides at some shares of its channels."""
    shares = [at / _OPTIONS for at in range(1, _OPTIONS + 1)]
    corners = [
        prunable.widths([group.allowed(share * group.channels) for group in prunable.groups]) for share in shares
    ]
    options = {}
    for name, width in prunable.before.items():
        free = len(width) < 2 or width[0] == width[-1]  # norms and depthwise convolutions have one side
        pairs = [(one, other) for one in corners for other in corners if one is other or not free]
        options[name] = [[one[name][0], *other[name][1:]] for one, other in pairs]
    return options
