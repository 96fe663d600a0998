"""Searches along a path for the smallest network that meets a target, by costs, measured files and validation."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from compress.config.stage_settings import FILE_LIMITS
from compress.methods.pruning.allocation import Path
from compress.methods.pruning.cost import Widths
from compress.methods.pruning.target import Limit, bisect, meet_limits
from compress.methods.pruning.trials import Trials
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_DROP_HALVINGS = 6  # each prunes, refits and validates: a 64th of the path is finer than validation can tell apart
_FITS = 3  # of the predicted cost of a file to the measured one
_SLACK = 0.05  # a measured figure this close below its limit is near enough


@dataclass
class Candidates:
    """The networks that a search may try; `left` is the number of channels, or the rank, that stays of each group."""

    stage: str  # whose settings name the target
    remedy: str  # what else lets a target be reached, for an error
    widths: Callable[[list[int]], Widths]
    costs: Callable[[Widths], dict[str, float]]  # MACs and parameters, and their shares
    bare: Callable[[list[int]], nn.Module]  # a copy as it is cut: its file is as large and as fast as the refitted one
    refitted: Callable[[list[int]], nn.Module]


@dataclass
class TargetSearch:
    """A search along a path for the first network that meets all limits; `left` is its result."""

    candidates: Candidates
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
        widths = self.candidates.widths(self.left)
        figures = {limit.name: limit.figure(widths) for limit in self.limits}
        predicted = {name: figure for name, figure in figures.items() if name in FILE_LIMITS}
        costs = self.candidates.costs(widths)
        return {
            "reached": costs | dict.fromkeys(FILE_LIMITS) | figures | self.measured | {"drop_points": drop},
            "predicted": predicted,
            "measured": self.measured,
            "search": self.tries,
        }

    def _meet_costs(self, of_file: dict[str, float]) -> None:
        """Meets all limits on costs; where the file is limited, by its measured figures, to which others are scaled."""
        limits = self.limits
        found: list[tuple[float, list[int], dict[str, float]]] = []  # how much of its limits a measured file fills
        for _ in range(_FITS if of_file else 1):
            search = meet_limits(self.path, limits, self.candidates.widths)
            self.left = search.left
            self.tries += search.tries
            if not search.met and any(share <= 1 for share, *_ in found):
                break
            if not search.met:
                raise self._unreachable(limits)
            if not of_file:
                return
            self.measured = self.trials.shipped().measure(self.candidates.bare(self.left))
            widths = self.candidates.widths(self.left)
            share = max(filled(name, self.measured[name], limit) for name, limit in of_file.items())
            costs = self.candidates.costs(widths)
            self.tries.append({"position": None} | costs | self.measured | {"met": share <= 1})
            found.append((share, self.left, self.measured))
            if 1 - _SLACK <= share <= 1:
                return
            limits = [self._fitted(limit, widths) for limit in self.limits]
        _, self.left, self.measured = min(found, key=lambda one: (one[0] > 1, abs(1 - one[0])))

    def _fitted(self, limit: Limit, widths: Widths) -> Limit:
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
        drop = self.trials.whole_val_percent - self.trials.val_percent(self.candidates.refitted(left))
        costs = self.candidates.costs(self.candidates.widths(left))
        log.info(
            "%s: with %.1f %% of the MACs it loses %.2f points", self.candidates.stage, 100 * costs["macs_share"], drop
        )
        self.tries.append({"position": position} | costs | {"drop_points": drop, "met": drop <= most})
        return drop

    def _unreachable(self, limits: list[Limit]) -> UserError:
        """Returns the error of `limits`, which may be fitted to measured figures, in terms of what was asked."""
        widths = self.candidates.widths(self.left)
        missed = {
            limit.name: limit.figure(widths) * before.highest / limit.highest
            for limit, before in zip(limits, self.limits, strict=True)
            if limit.figure(widths) > limit.highest
        }
        return unreachable(self.candidates.stage, self.candidates.remedy, self.asked, missed)

    def _loses(self, drop: float, most: float) -> UserError:
        share, stage = self.tries[-1]["macs_share"], self.candidates.stage
        return UserError(
            f"{stage}.target.max_drop_points={most:g} with limits that a network with {100 * share:.1f} % of the MACs "
            f"meets, and no larger one, which loses {drop:.2f} points after its refit",
            "limits that such a network keeps",
            f"raise max_drop_points to {drop:.2f}, or leave it out: the epochs after the refit win points back",
        )


def unreachable(stage: str, remedy: str, asked: dict[str, float], missed: dict[str, float]) -> UserError:
    """Returns the error of a target whose limits the smallest network misses; `missed` has its figures."""
    settings = {name: [name] for name in missed} | {"latency_ms": ["latency_ms", "speedup"]}
    names = [name for missing in missed for name in settings[missing] if name in asked]
    received = ", ".join(f"{stage}.target.{name}={asked[name]:.4g}" for name in names)
    least = ", ".join(f"{name} {figure:.4g}" for name, figure in missed.items())
    return UserError(
        f"{received or f'{stage}.ratio'}, while the smallest network that {stage} can reach has {least}",
        f"a target that {stage} can reach",
        f"ask for no less than that, or {remedy}",
    )


def filled(name: str, figure: float, limit: float) -> float:
    """Returns a measured figure as a share of its limit; a speedup is limited from below."""
    return limit / figure if name == "speedup" else figure / limit
