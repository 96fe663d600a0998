"""A search without a network: trials are judged by figures that a function makes of their settings."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from compress.config.schema import Config, SearchConfig
from compress.launch.exit_status import exit_status
from compress.launch.search.loop import Result, SearchHooks, TrialJob, search
from compress.launch.search.objectives import Goals, parse_goals
from compress.launch.search.pareto import best_trial
from compress.launch.search.results import print_results, write_results
from compress.launch.search.space import Dimension
from compress.launch.search.storage import open_storage, storage_url
from compress.launch.search.trials import Trial, Trials
from compress.utils.errors import EarlyStopped
from compress.utils.files import FAILED, FINISHED, GIVEN_UP
from compress.utils.numbered_sampler import NumberedSampler

DATABASES = ExitStack()

SPACE = [
    Dimension("prune.ratio", FloatDistribution(0.2, 0.8)),
    Dimension("distill.alpha", CategoricalDistribution(["0.5", "0.9", "1.0"])),
]


def accuracy_and_time(settings: dict[str, Any]) -> dict[str, float]:
    """The more is pruned, the faster and the less accurate."""
    ratio = settings["prune.ratio"]
    accuracy = 100 - 30 * ratio**2 - float(settings["distill.alpha"])
    return {
        "deployed_val_top1_percent": accuracy,
        "deployed_val_delta_points": accuracy - 100,
        "deployed_top1_percent": accuracy - 1,
        "top1_delta_points": accuracy - 100,
        "latency_ms_p50": 2 - ratio,
    }


class FakeRuns:
    """What launches them: keeps every job, and lets `figures` judge or raise."""

    def __init__(self, figures: Callable[[dict[str, Any]], dict[str, Any]] = accuracy_and_time):
        self.figures = figures
        self.batches: list[list[TrialJob]] = []
        self.curve: Callable[[dict[str, Any]], dict[str, list[float]]] = lambda settings: {}

    @property
    def jobs(self) -> list[TrialJob]:
        return [job for batch in self.batches for job in batch]

    def launch(self, jobs: Sequence[TrialJob]) -> list[Result]:
        self.batches.append(list(jobs))
        return [self._run(job) for job in jobs]

    def _run(self, job: TrialJob) -> Result:
        settings = job.trial.settings
        try:
            return {"state": FINISHED, "metrics": self.figures(settings), "validation": self.curve(settings)}
        except Exception as error:
            return {"state": GIVEN_UP if isinstance(error, EarlyStopped) else FAILED, "error": exit_status(error)[1]}


def fake_trials(
    folder: Path,
    settings: SearchConfig,
    goals: Goals | None = None,
    space: list[Dimension] = SPACE,
) -> Trials:
    """The study `fake` in `folder`, or where `settings.storage` says; open until `DATABASES` is closed."""
    storage = DATABASES.enter_context(open_storage(storage_url(settings.storage, folder)))
    goals = goals or parse_goals(settings.objectives, settings.constraints)
    return Trials(storage, "fake", space, goals, NumberedSampler(settings.sampler, settings.seed))


def fake_search(
    folder: Path,
    runs: FakeRuns,
    clock: Callable[[], float] = lambda: 0.0,
    compose: Callable[[list[str]], Config] = lambda overrides: Config(),
    space: list[Dimension] = SPACE,
    **settings: Any,
) -> Trials:
    """Searches, and leaves what a search leaves in `folder`."""
    config = SearchConfig(**{"trials": 8} | settings)
    trials = fake_trials(folder, config, space=space)

    def overrides(trial: Trial) -> list[str]:
        return [dimension.typed(trial.settings[dimension.key]) for dimension in space]

    def write_all(shown: bool) -> None:
        best = best_trial(trials.all(), trials.goals)
        write_results(folder, {"study": "fake"}, trials.all(), trials.goals, Config() if best else None)
        if shown:
            print_results(folder, trials.all(), trials.goals)

    search(trials, config, SearchHooks(runs.launch, overrides, compose, write_all, clock))
    return trials
