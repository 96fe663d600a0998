"""Decides the rank of each layer: by what the network may cost and lose, where its outputs change the least."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.config.stage_settings import FactorizeConfig
from compress.methods.factorization.ranks import FactorizableNetwork, LayerRanks
from compress.methods.factorization.refit import decompose_layers, factorize_layers
from compress.methods.factorization.sensitivity import measure_rank_sensitivity
from compress.methods.pruning.allocation import Path, cheapest_path
from compress.methods.pruning.cost import Cost, Widths
from compress.methods.pruning.limits import FileCosts, limits_of_target, tightest
from compress.methods.pruning.search import Candidates, TargetSearch
from compress.methods.pruning.sensitivity import Sensitivity
from compress.methods.pruning.target import Limit
from compress.methods.pruning.trials import SENSITIVITY_IMAGES, Trials

_OPTIONS = 4  # ranks of a layer whose times are measured before a path is laid; others follow where needed


@dataclass
class RankChoice:
    """The rank of each layer that can be factorized, and what stage.json says of the search."""

    left: list[int]
    notes: dict[str, Any]  # "ranks", "sensitivity", and "target" where one is set


def choose_ranks(factorizable: FactorizableNetwork, config: FactorizeConfig, trials: Trials) -> RankChoice:
    """Chooses the largest network on a path that meets `config.target`, or `config.ratio`.

    Raises UserError where no network on the way meets the target, with what can be reached.
    """
    start = time.perf_counter()
    asked = config.target.asked()
    limits = _limits(factorizable, config, trials)
    refits = config.reconstruction_samples > 0
    sensitivity = None
    path = local_path(factorizable.groups)
    if config.scope == "sensitivity":
        images = trials.images()[:SENSITIVITY_IMAGES]
        sensitivity = measure_rank_sensitivity(factorizable, images, trials.distance, refits)
        path = sensitivity_path(factorizable, sensitivity, _currency(limits, factorizable, trials))
    search = TargetSearch(_candidates(factorizable, trials, refits), path, limits, trials, asked)
    target = search.run(last=True)
    notes: dict[str, Any] = {}
    if asked:
        notes["target"] = {"asked": asked} | target | {"seconds": round(time.perf_counter() - start, 1)}
    notes["ranks"] = factorizable.rows(search.left)
    if sensitivity:
        notes["sensitivity"] = sensitivity.table(factorizable, search.left)
    return RankChoice(search.left, notes)


def _limits(factorizable: FactorizableNetwork, config: FactorizeConfig, trials: Trials) -> list[Limit]:
    """Returns the limits of the target, or that of the ratio on the MACs of the layers that can be factorized."""
    macs, whole = factorizable.macs(trials.whole.macs), trials.whole
    asked = config.target.asked()
    if asked:
        file = FileCosts(trials.shipped, factorizable.network, factorizable.calls, factorizable.twin)
        return limits_of_target(asked, whole, macs, factorizable.params(), file)
    part = sum(macs.of_layer(group.layer, factorizable.before[group.layer]) for group in factorizable.groups)
    return [Limit("macs_share", 1 - config.ratio * part / whole.macs, macs, whole.macs)]


def _currency(limits: list[Limit], factorizable: FactorizableNetwork, trials: Trials) -> Cost:
    """Returns the cost that has to be saved most; MACs where no cost is limited."""
    return tightest(limits, factorizable.before) or factorizable.macs(trials.whole.macs)


def local_path(groups: Sequence[LayerRanks]) -> Path:
    """Returns the path whose position is the share by which the rank of each layer is below that of no saving."""
    return lambda position: [group.allowed((1 - position) * group.channels) for group in groups]


def sensitivity_path(factorizable: FactorizableNetwork, sensitivity: Sensitivity, cost: Cost) -> Path:
    """Returns the path that loses the least for each MAC, byte or microsecond that it saves."""
    groups = factorizable.groups
    options = [factorizable.layer_widths(group, group.channels) for group in groups]
    options += [
        factorizable.layer_widths(group, group.allowed(group.channels * at / _OPTIONS))
        for group in groups
        for at in range(1, _OPTIONS)
    ]
    wanted: dict[str, list[list[int]]] = {}
    for widths in options:
        for name, width in widths.items():
            wanted.setdefault(name, []).append(width)
    cost.prepare(wanted)

    def cost_of(number: int, rank: int) -> float:
        widths = factorizable.layer_widths(groups[number], rank)
        return sum(cost.of_layer(name, width) for name, width in widths.items())

    def saved(left: list[int], number: int, fewer: int) -> float:
        return cost_of(number, left[number]) - cost_of(number, fewer)

    return cheapest_path(groups, sensitivity.curves, [group.channels for group in groups], saved)


def _candidates(factorizable: FactorizableNetwork, trials: Trials, refits: bool) -> Candidates:
    """Returns the factorized networks that a search may try."""
    whole, original = trials.whole, factorizable.network
    macs, params = factorizable.macs(whole.macs), factorizable.params()

    def costs(widths: Widths) -> dict[str, float]:
        return whole.figures(macs.of(widths), params.of(widths))

    def bare(left: list[int]) -> nn.Module:
        network = copy.deepcopy(original)
        decompose_layers(network, factorizable.factors(left))
        return network

    def refitted(left: list[int]) -> nn.Module:
        if not refits:
            return bare(left)
        network = copy.deepcopy(original)
        factorize_layers(network, original, factorizable.factors(left), trials.images())
        return network

    remedy = "allow lower ranks (factorize.round_to)"
    return Candidates("factorize", remedy, factorizable.widths, costs, bare, refitted)
