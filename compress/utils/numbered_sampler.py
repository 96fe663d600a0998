"""Optuna's samplers, made reproducible: a trial's number alone decides its random numbers."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

_GENERATION = 10  # NSGA-II's population; its default, 50, is more than most searches can afford

_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "gp": GPSampler,
    "nsgaii": partial(NSGAIISampler, population_size=_GENERATION),
    "random": RandomSampler,
}


class NumberedSampler(BaseSampler):
    """A sampler by name that is seeded anew for each trial.

    With one seed for a whole process, a resumed search would propose its first trials again, and so would a second
    process on the same study.
    """

    def __init__(self, name: str, seed: int, **options: Any):
        """Takes the options of Optuna's sampler."""
        self._make, self._seed = partial(_SAMPLERS[name], **options), seed
        self._sampler = self._make(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(seed=zlib.crc32(f"{self._seed} {trial.number}".encode()))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return self._sampler.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)
