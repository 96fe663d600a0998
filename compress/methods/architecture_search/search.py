"""Searches a network's sub-networks for the best one of each cost, and takes the one that a target asks for."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from compress.methods.architecture_search.budget import Budget
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.front import FullScore, Point, full_front
from compress.methods.architecture_search.score import Scorer
from compress.methods.architecture_search.seeds import Parts, sensitive_seeds, uniform_seeds
from compress.methods.architecture_search.sensitivity import part_sensitivity
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.architecture_search.store import Store
from compress.methods.architecture_search.trials import Genes, Trial, run_trials
from compress.methods.pruning.allocation import Curve
from compress.methods.pruning.cut import sensitivity_path
from compress.methods.pruning.sensitivity import Sensitivity
from compress.methods.pruning.target import meet_limits
from compress.methods.pruning.trials import Trials

log = logging.getLogger("compress")


@dataclass
class Search:
    """A search under a budget; what it finds is kept in `store`, so that it goes on where it was stopped."""

    space: SearchSpace
    scores: Sequence[Tensor]  # importance of the channels (channels,) of each group
    budget: Budget
    trials: Trials
    scorer: Scorer
    store: Store

    def run(self, count: int, seed: int) -> tuple[list[Trial], list[Point]]:
        """Scores `count` candidates quickly, and the best of them in full; returns all, and the front."""
        start = time.perf_counter()
        genes = Genes(self.space, self.budget)
        found = run_trials(genes, self._seeds(), self._scored, count, seed)
        front = full_front(found, self.full)
        log.info(
            "search_architecture: %d candidates, %d networks on the front, %.0f s",
            count, len(front), time.perf_counter() - start,
        )  # fmt: skip
        return found, front

    @property
    def full(self) -> FullScore:
        """Returns what scores candidates in full."""
        return FullScore(self.space, self.budget, self.trials.whole, self._measured)

    def _seeds(self) -> Iterator[tuple[Candidate, float]]:
        yield from uniform_seeds(self.space, self.budget)
        parts = Parts(self.space)
        curves: list[Curve] = self.store.once(
            "sensitivity", lambda: [list(curve) for curve in part_sensitivity(parts, self.scores, self.trials).curves]
        )
        cost = self.budget.currency(self.space.widths(self.space.whole))
        widths = Sensitivity(0, curves[: len(self.space.groups)], 0.0)
        path = sensitivity_path(self.space.prunable, widths, list(self.space.whole.left), cost)

        def pruned(budget: Budget) -> Candidate:
            made = self.space.candidate
            return made(meet_limits(path, budget.limits, lambda left: self.space.widths(made(left))).left)

        yield from sensitive_seeds(parts, curves, cost, self.budget, pruned)

    def _scored(self, candidate: Candidate) -> Trial:
        distance = self.store.distance(candidate.key, lambda: self.scorer.quick(candidate))
        return Trial(candidate, distance, self.budget.share(self.space.widths(candidate)))

    def _measured(self, candidate: Candidate) -> tuple[float, float]:
        """Returns the distance and the validation metric of a candidate in full."""

        def measure() -> list[float]:
            network, _ = self.scorer.finished(candidate)
            return [self.scorer.distance(network), self.trials.val_percent(network)]

        distance, val_percent = self.store.once(f"full {candidate.key}", measure)
        return distance, val_percent
