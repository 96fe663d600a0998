"""Optuna's samplers, made reproducible: a trial's number alone decides its random numbers."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

_GENERATION = 10  # NSGA-II's population; its default, 50, is more than most searches can afford

_SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, generation: TPESampler(seed=seed),
    "gp": lambda seed, generation: GPSampler(seed=seed),
    "nsgaii": lambda seed, generation: NSGAIISampler(seed=seed, population_size=generation),
    "random": lambda seed, generation: RandomSampler(seed=seed),
}


class NumberedSampler(BaseSampler):
    """A sampler by name that is seeded anew for each trial.

    With one seed for a whole process, a resumed search would propose its first trials again, and so would a second
    process on the same study.
    """

    def __init__(self, name: str, seed: int, generation: int = _GENERATION):
        """Takes the `generation` of NSGA-II: the number of trials whose best are the parents of the next."""
        self._make, self._seed, self._generation = _SAMPLERS[name], seed, generation
        self._sampler = self._make(seed, generation)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(zlib.crc32(f"{self._seed} {trial.number}".encode()), self._generation)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return self._sampler.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)
