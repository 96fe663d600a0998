"""Proposes sub-networks by NSGA-II (Deb et al. 2002), which spreads over accuracy and cost, and scores each once."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers.nsgaii import UniformCrossover

from compress.methods.architecture_search.budget import Budget, fitted
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.space import SearchSpace
from compress.utils.console import progress
from compress.utils.numbered_sampler import NumberedSampler

log = logging.getLogger("compress")

_GENERATION = 16  # trials, whose best and those before are the parents of the next
_SWAPPED = 0.2  # share of a child's genes that come from its other parent: half would mix forms that do not fit


@dataclass(frozen=True)
class Trial:
    """A sub-network that was scored: `share` is how much of the budget it costs."""

    candidate: Candidate
    distance: float
    share: float


class Genes:
    """Sub-networks as the parameters of Optuna's trials; widths are scaled to a level of the budget afterwards."""

    def __init__(self, space: SearchSpace, budget: Budget):
        self._space, self._budget = space, budget
        self._widths = [group.widths for group in space.groups]
        self._sizes = [None, *space.input_sizes]
        wanted, *others = budget.levels
        self._levels = [wanted] * len(others) + others if budget.limited else list(budget.levels)

    def propose(self, trial: optuna.Trial) -> Candidate:
        """Returns the candidate of a trial, whose genes are drawn by the study's sampler."""
        level = self._levels[trial.suggest_int("level", 0, len(self._levels) - 1)]
        left = [
            widths[trial.suggest_int(f"width {number}", 0, len(widths) - 1)]
            for number, widths in enumerate(self._widths)
        ]
        gone = [name for name in self._space.blocks if trial.suggest_categorical(f"without {name}", (False, True))]
        kernels = {
            name: trial.suggest_categorical(f"kernel {name}", sizes) for name, sizes in self._space.kernels.items()
        }
        size = self._sizes[trial.suggest_int("input size", 0, len(self._sizes) - 1)]
        return fitted(self._space, self._space.candidate(left, gone, kernels, size), self._budget.at(level))

    def encoded(self, candidate: Candidate, level: float) -> dict[str, Any]:
        """Returns the parameters with which a trial proposes this candidate, or one with nearly its widths."""
        sizes = dict(candidate.kernels)
        return (
            {"level": self._levels.index(level), "input size": self._sizes.index(candidate.input_size)}
            | {
                f"width {number}": min(range(len(widths)), key=lambda at: abs(widths[at] - candidate.left[number]))
                for number, widths in enumerate(self._widths)
            }
            | {f"without {name}": name in candidate.without for name in self._space.blocks}
            | {f"kernel {name}": sizes.get(name, own[0]) for name, own in self._space.kernels.items()}
        )


def run_trials(
    genes: Genes,
    seeds: Iterable[tuple[Candidate, float]],
    score: Callable[[Candidate], Trial],
    count: int,
    seed: int,
) -> list[Trial]:
    """Scores `count` candidates, the seeds first; each next generation descends from the best of those before.

    All random numbers follow from `seed` and a trial's number: with scores that are kept, the same search goes on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    crossover = UniformCrossover(_SWAPPED)  # of widths; blocks and kernels are swapped by `swapping_prob`
    sampler = NumberedSampler("nsgaii", seed, population_size=_GENERATION, crossover=crossover, swapping_prob=_SWAPPED)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for candidate, level in seeds:
        study.enqueue_trial(genes.encoded(candidate, level))
    found = []
    with progress("search", count) as bar:
        for _ in range(count):
            trial = study.ask()
            # The sampler then counts a seed, too, as a member of its generation: it samples nothing else of one.
            _ = trial.relative_params
            scored = score(genes.propose(trial))
            study.tell(trial, [scored.distance, scored.share])
            found.append(scored)
            affordable = [other.distance for other in found if other.share <= 1]
            bar.note(f"{min(affordable):.3g} nats" if affordable else "")
            bar.advance()
    return found


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Returns the trials that no other one beats in distance and cost, the cheapest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.share, trial.distance)):
        if not front or trial.distance < front[-1].distance:
            front.append(trial)
    return front
