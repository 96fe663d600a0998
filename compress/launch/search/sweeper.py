"""A search as Hydra starts it: reads space and goals from the command line, and passes trials to the launcher."""

from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from compress.config.compose import to_user_error
from compress.config.options import check_ranges
from compress.config.schema import Config, SearchConfig
from compress.config.validation import check
from compress.launch.exit_status import exit_status
from compress.launch.search.loop import Result, SearchHooks, TrialJob, search
from compress.launch.search.objectives import Goals, parse_goals
from compress.launch.search.pareto import best_trial
from compress.launch.search.results import print_results, write_results
from compress.launch.search.space import Dimension, read_space
from compress.launch.search.storage import open_storage, storage_url
from compress.launch.search.trials import Trial, Trials
from compress.launch.sweep import current_state
from compress.report.settings import flat
from compress.utils.errors import Interrupted, UserError
from compress.utils.files import FAILED
from compress.utils.numbered_sampler import NumberedSampler

# Settings that may differ between two starts of a study: the places of files, and what changes no figure.
_ELSEWHERE = ("data.root", "data.workers", "cache.dir", "cache.enabled", "train.checkpoint_minutes")


def sweep(arguments: list[str], config: DictConfig, loader: ConfigLoader, launcher: Launcher) -> None:
    """Searches with `arguments`, the command line without Hydra's own part, and writes the results.

    Raises UserError for invalid settings of the search, and whatever `search` raises.
    """
    settings = cast(SearchConfig, OmegaConf.to_object(config.hydra.sweeper))  # its schema
    check_ranges(settings, "hydra.sweeper.")
    goals = parse_goals(settings.objectives, settings.constraints)
    fixed, space = read_space(OverridesParser.create(config_loader=loader).parse_overrides(arguments))
    hydra = _Hydra(config, loader, launcher)
    start = _check_space(fixed, space, hydra)
    folder = Path(config.hydra.sweep.dir)
    url = storage_url(settings.storage, folder)
    study = {"study": settings.study, "storage": str(url), "sampler": settings.sampler}

    def overrides(trial: Trial) -> list[str]:
        return [*fixed, *(dimension.typed(trial.settings[dimension.key]) for dimension in space)]

    def write_all(shown: bool) -> None:
        known = trials.all()
        best = best_trial(known, goals)
        write_results(folder, study, known, goals, hydra.compose(overrides(best)) if best else None)
        if shown:
            print_results(folder, known, goals)

    with open_storage(url) as storage:
        trials = Trials(storage, settings.study, space, goals, NumberedSampler(settings.sampler, settings.seed))
        trials.require_same(_description(start, space, goals))
        try:
            search(trials, settings, SearchHooks(hydra.launch, overrides, hydra.compose_checked, write_all))
        except Interrupted as stop:  # jobs in other processes end as by SIGINT, whatever the command received
            raise Interrupted(current_state().stopped_by or stop.signal, stop.where) from None


@dataclass
class _Hydra:
    """Hydra's part: composes a config from overrides, and runs it."""

    config: DictConfig  # the command's
    loader: ConfigLoader
    launcher: Launcher
    launched: int = 0  # jobs so far

    def compose(self, overrides: list[str]) -> Config:
        """Returns the config of `overrides`, with values unchecked. Raises UserError where they do not compose."""
        try:
            composed = self.loader.load_sweep_config(self.config, overrides)
            with open_dict(composed):
                del composed["hydra"]
            return cast(Config, OmegaConf.to_object(composed))  # its schema
        except (HydraException, OmegaConfBaseException) as error:
            raise to_user_error(error) from error

    def compose_checked(self, overrides: list[str]) -> Config:
        """Returns the config of `overrides`. Also raises UserError for an invalid value or combination of values."""
        config = self.compose(overrides)
        check(config)
        return config

    def launch(self, jobs: list[TrialJob]) -> list[Result]:
        """Runs jobs through the launcher, at once or one after another, each in its trial's folder."""
        batch = [[*job.overrides, f"hydra.sweep.subdir={job.trial.folder}"] for job in jobs]
        returned = self.launcher.launch(batch, initial_job_idx=self.launched)
        self.launched += len(batch)
        return [_result(one) for one in returned]


def _result(returned: JobReturn) -> Result:
    """Returns a job's result. An error around the job, e.g. a folder that cannot be written, counts as its failure."""
    try:
        with redirect_stderr(StringIO()):  # Hydra prints each failure there; the search prints them all at its end
            return returned.return_value
    except Exception as error:
        return {"state": FAILED, "error": exit_status(error)[1]}


def _check_space(fixed: list[str], space: list[Dimension], hydra: _Hydra) -> Config:
    """Returns the config of the first ends. Raises UserError for an invalid key or end of a range."""
    firsts = {dimension.key: dimension.typed(dimension.ends[0]) for dimension in space}
    start = hydra.compose([*fixed, *firsts.values()])
    check_ranges(start)
    if start.preflight:
        raise UserError("preflight=true in a search", "trials with figures to judge", "leave it out")
    for dimension in space:
        for end in dimension.ends[1:]:
            check_ranges(hydra.compose([*fixed, *(firsts | {dimension.key: dimension.typed(end)}).values()]))
    return start


def _description(start: Config, space: list[Dimension], goals: Goals) -> dict[str, str]:
    """Returns the settings that two starts of one study must share, with their values as text."""
    settings = {name: value for name, value in flat(asdict(start)).items() if name not in _ELSEWHERE}
    return (
        {"hydra.sweeper.objectives": f"[{', '.join(map(str, goals.objectives))}]"}
        | {"hydra.sweeper.constraints": f"[{', '.join(map(str, goals.constraints))}]"}
        | settings
        | {dimension.key: str(dimension.distribution) for dimension in space}
    )
