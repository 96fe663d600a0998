"""Decides how many filters each layer keeps: by a ratio, or by what the network may cost and lose."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from compress.config.stage_settings import FILE_LIMITS, PruneConfig
from compress.methods.pruning.allocation import Path, cheapest_path, ratio_path
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.cost import Cost
from compress.methods.pruning.filters import known_scores, own_ratios
from compress.methods.pruning.importance import LabelledImages, score_channels
from compress.methods.pruning.limits import ShippedFile, Whole, currency, limits_of, part_of_the_way
from compress.methods.pruning.reconstruction import reconstruct
from compress.methods.pruning.sensitivity import Sensitivity, measure_sensitivity
from compress.methods.pruning.target import Limit, bisect, meet_limits
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_SENSITIVITY_IMAGES = 256
_DROP_HALVINGS = 6  # each prunes, refits and validates: a 64th of the path is finer than validation can tell apart
_OPTIONS = 6  # widths of a layer's side whose times are measured before a path is laid; others follow where needed
_FITS = 3  # of the predicted cost of a file to the measured one
_SLACK = 0.05  # a measured figure this close below its limit is near enough


@dataclass
class Trials:
    """What a search may use to judge a candidate."""

    labelled: LabelledImages
    images: Callable[[], Tensor]  # (N, C, H, W), for refits
    distance: Callable[[Tensor, Tensor], Tensor]  # of outputs from a reference, (N,)
    val_percent: Callable[[nn.Module], float]  # the task's metric on validation
    whole: Whole
    whole_val_percent: float  # of the network before its first cut
    shipped: Callable[[], ShippedFile]


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
        images = trials.images()[:_SENSITIVITY_IMAGES]
        sensitivity = measure_sensitivity(prunable, scores, free, images, trials.distance)
        path = sensitivity_path(prunable, sensitivity, path(0.0), currency(limits, prunable, trials.whole))
    now = limits if step == config.steps else part_of_the_way(limits, prunable, 1 / (config.steps - step + 1))
    search = _Search(prunable, scores, path, now, trials, asked)
    target = search.run(last=step == config.steps)
    notes: dict[str, Any] = {}
    if asked:
        notes["target"] = {"asked": asked} | target | {"seconds": round(time.perf_counter() - start, 1)}
    if sensitivity:
        notes["sensitivity"] = sensitivity.table(prunable, search.left)
    return Cut(search.left, scores, notes)


def sensitivity_path(prunable: PrunableNetwork, sensitivity: Sensitivity, start: list[int], cost: Cost) -> Path:
    """Returns the path that loses the least for each MAC, byte or microsecond that it saves."""
    cost.prepare(_options(prunable))

    def saved(left: list[int], number: int, fewer: int) -> float:
        before = prunable.widths(left)
        after = prunable.widths([*left[:number], fewer, *left[number + 1 :]])
        layers = {name for name, _ in prunable.groups[number].losses}
        return sum(cost.of_layer(name, before[name]) - cost.of_layer(name, after[name]) for name in layers)

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


@dataclass
class _Search:
    """A search along a path for the first network that meets all limits; `left` is its result."""

    prunable: PrunableNetwork
    scores: list[Tensor]
    path: Path
    limits: list[Limit]
    trials: Trials
    asked: dict[str, float]
    left: list[int] = field(default_factory=list)
    tries: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def run(self, last: bool) -> dict[str, Any]:
        """Finds the network; returns "reached", "predicted", "measured" and "search" for stage.json.

        Files are measured in the `last` step alone. Raises UserError where the target cannot be reached.
        """
        of_file = {name: self.asked[name] for name in FILE_LIMITS if name in self.asked}
        if self.limits:
            self._meet_costs(of_file if last else {})
        drop = None
        if "max_drop_points" in self.asked:
            drop = self._keep_drop(self.asked["max_drop_points"])
        widths, whole = self.prunable.widths(self.left), self.trials.whole
        predicted = {limit.name: limit.figure(widths) for limit in self.limits if limit.name in FILE_LIMITS}
        costs = whole.costs(self.prunable, widths)
        return {
            "reached": costs | dict.fromkeys(FILE_LIMITS) | predicted | self.measured | {"drop_points": drop},
            "predicted": predicted,
            "measured": self.measured,
            "search": self.tries,
        }

    def _meet_costs(self, of_file: dict[str, float]) -> None:
        """Meets all limits on costs; where the file is limited, by its measured figures, to which others are scaled."""
        limits = self.limits
        found: list[tuple[float, list[int], dict[str, float]]] = []  # how much of its limits a measured file fills
        for _ in range(_FITS if of_file else 1):
            search = meet_limits(self.path, limits, self.prunable.widths)
            self.left = search.left
            self.tries += search.tries
            if not search.met and any(filled <= 1 for filled, *_ in found):
                break
            if not search.met:
                raise self._unreachable(limits)
            if not of_file:
                return
            network, _ = self.prunable.pruned_copy(self.left, self.scores)
            self.measured = self.trials.shipped().measure(network)
            widths = self.prunable.widths(self.left)
            filled = max(_filled(name, self.measured[name], limit) for name, limit in of_file.items())
            costs = self.trials.whole.costs(self.prunable, widths)
            self.tries.append({"position": None} | costs | self.measured | {"met": filled <= 1})
            found.append((filled, self.left, self.measured))
            if 1 - _SLACK <= filled <= 1:
                return
            limits = [self._fitted(limit, widths) for limit in self.limits]
        _, self.left, self.measured = min(found, key=lambda one: (one[0] > 1, abs(1 - one[0])))

    def _fitted(self, limit: Limit, widths: dict[str, list[int]]) -> Limit:
        """Returns a limit on the prediction that stands for the limit on the measured figure."""
        if limit.name not in self.measured:
            return limit
        return replace(limit, highest=limit.highest * limit.figure(widths) / self.measured[limit.name])

    def _keep_drop(self, most: float) -> float:
        """Keeps the drop within `most` points; returns it. Without limits on costs, finds the smallest such network."""
        if self.limits:
            drop = self._drop(self.left, None, most)
            if drop > most:
                raise self._loses(drop, most)
            return drop
        drops: dict[tuple[int, ...], float] = {}

        def loses_too_much(left: list[int], position: float) -> bool:
            drops[tuple(left)] = self._drop(left, position, most)
            return drops[tuple(left)] > most

        position = 1.0
        if loses_too_much(self.path(1.0), 1.0):
            position, _ = bisect(self.path, loses_too_much, _DROP_HALVINGS)
        self.left = self.path(position)
        return drops.get(tuple(self.left), 0.0)

    def _drop(self, left: list[int], position: float | None, most: float) -> float:
        """Returns the points of the validation metric that a network loses after its refit."""
        network, kept = self.prunable.pruned_copy(left, self.scores)
        if kept:
            reconstruct(network, self.prunable.network, kept, self.trials.images())
        drop = self.trials.whole_val_percent - self.trials.val_percent(network)
        costs = self.trials.whole.costs(self.prunable, self.prunable.widths(left))
        log.info("prune: with %.1f %% of the MACs it loses %.2f points", 100 * costs["macs_share"], drop)
        self.tries.append({"position": position} | costs | {"drop_points": drop, "met": drop <= most})
        return drop

    def _unreachable(self, limits: list[Limit]) -> UserError:
        """Returns the error of `limits`, which may be fitted to measured figures, in terms of what was asked."""
        widths = self.prunable.widths(self.left)
        missed = {
            limit.name: limit.figure(widths) * before.highest / limit.highest
            for limit, before in zip(limits, self.limits, strict=True)
            if limit.figure(widths) > limit.highest
        }
        settings = {name: [name] for name in missed} | {"latency_ms": ["latency_ms", "speedup"]}
        names = [name for missing in missed for name in settings[missing] if name in self.asked]
        asked = ", ".join(f"prune.target.{name}={self.asked[name]:.4g}" for name in names)
        least = ", ".join(f"{name} {figure:.4g}" for name, figure in missed.items())
        return UserError(
            f"{asked or 'prune.ratio'}, while the smallest network that pruning can reach has {least}",
            "a target that pruning can reach",
            "ask for no less than that, or let more layers lose filters (prune.layer_ratios, prune.round_to)",
        )

    def _loses(self, drop: float, most: float) -> UserError:
        share = self.tries[-1]["macs_share"]
        return UserError(
            f"prune.target.max_drop_points={most:g} with limits that a network with {100 * share:.1f} % of the MACs "
            f"meets, and no larger one, which loses {drop:.2f} points after its refit",
            "limits that such a network keeps",
            f"raise max_drop_points to {drop:.2f}, or leave it out: the epochs after the refit win points back",
        )


def _filled(name: str, figure: float, limit: float) -> float:
    """Returns a measured figure as a share of its limit; a speedup is limited from below."""
    return limit / figure if name == "speedup" else figure / limit
