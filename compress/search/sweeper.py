"""What Hydra calls for hydra/sweeper=optuna; each start makes it known, so what is heavy waits until it is called."""

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from compress.config import Config, SearchConfig
    from compress.search.goals import Goals
    from compress.search.loop import Job, Result
    from compress.search.space import Dimension
    from compress.search.trials import Trial

# What a study's start need not have in common with its later ones: where things lie, and what changes no figure.
_ELSEWHERE = ("data.root", "data.workers", "cache.dir", "cache.enabled", "train.checkpoint_minutes")


class OptunaSweeper(Sweeper):
    """hydra/sweeper=optuna: reads the space and the goals from the command line, gives Hydra's launcher the trials."""

    def __init__(self, **settings: Any) -> None:
        """Hydra passes what `setup` reads from the whole config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launched = 0

    def sweep(self, arguments: list[str]) -> None:
        """Searches with `arguments`, the command line without Hydra's own part, and leaves what it found.

        Raises UserError for a search that cannot be, and as `compress.search.loop.search`.
        """
        _require_optuna()
        from compress.config import check_ranges
        from compress.search import leave
        from compress.search.goals import parse_goals
        from compress.search.loop import Surroundings, search
        from compress.search.pareto import best_trial
        from compress.search.sampler import NumberedSampler
        from compress.search.space import read_space
        from compress.search.storage import opened, storage_url
        from compress.search.trials import Trials

        settings: SearchConfig = OmegaConf.to_object(self.config.hydra.sweeper)
        check_ranges(settings, "hydra.sweeper.")
        goals = parse_goals(settings.objectives, settings.constraints)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        fixed, space = read_space(parser.parse_overrides(arguments))
        start = self._check_space(fixed, space)
        folder = Path(str(self.config.hydra.sweep.dir))
        url = storage_url(settings.storage, folder)
        study = {"study": settings.study, "storage": str(url), "sampler": settings.sampler}

        def overrides(trial: "Trial") -> list[str]:
            return [*fixed, *(dimension.typed(trial.settings[dimension.key]) for dimension in space)]

        def leave_all(show: bool) -> None:
            known = trials.all()
            best = best_trial(known, goals)
            leave.leave(folder, study, known, goals, self._compose(overrides(best)) if best else None)
            if show:
                leave.show(folder, known, goals)

        with opened(url) as storage:
            sampler = NumberedSampler(settings.sampler, settings.seed)
            trials = Trials(storage, settings.study, space, goals, sampler)
            trials.require_same(_description(start, space, goals))
            search(trials, settings, Surroundings(self._launch, overrides, self._checked, leave_all))

    def _launch(self, jobs: Sequence["Job"]) -> list["Result"]:
        """Runs jobs side by side, or one after another: as the launcher does. Each has a folder of its own."""
        batch = [[*job.overrides, f"hydra.sweep.subdir={job.trial.folder}"] for job in jobs]
        returned = self.launcher.launch(batch, initial_job_idx=self.launched)
        self.launched += len(batch)
        return [_result(one) for one in returned]

    def _check_space(self, fixed: list[str], space: list["Dimension"]) -> "Config":
        """Raises UserError for a key, or an end of a range, that cannot be; returns the config of the first ends."""
        from compress.config import check_ranges
        from compress.errors import UserError

        firsts = {dimension.key: dimension.typed(dimension.ends[0]) for dimension in space}
        start = self._compose([*fixed, *firsts.values()])
        check_ranges(start)
        if start.preflight:
            raise UserError("preflight=true in a search", "trials with figures to judge", "leave it out")
        for dimension in space:
            for end in dimension.ends[1:]:
                tried = firsts | {dimension.key: dimension.typed(end)}
                check_ranges(self._compose([*fixed, *tried.values()]))
        return start

    def _checked(self, overrides: list[str]) -> "Config":
        from compress.config import check

        config = self._compose(overrides)
        check(config)
        return config

    def _compose(self, overrides: list[str]) -> "Config":
        """The config that these overrides make; raises UserError where they make none."""
        from compress.compose import explain

        try:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(composed):
                del composed["hydra"]
            return OmegaConf.to_object(composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error) from error


def register_search() -> None:
    """Makes hydra/sweeper=optuna known to Hydra."""
    plugins = Plugins.instance()
    plugins.register(OptunaSweeper)
    # Hydra starts plugins of the package hydra_plugins alone, and goes by their names.
    plugins.class_name_to_class["hydra_plugins.compress.OptunaSweeper"] = OptunaSweeper


def _result(returned: JobReturn) -> "Result":
    """What a job returned. A fault around it, as of a folder that cannot be written, is its failure."""
    from compress.compose import ending
    from compress.files import FAILED

    try:
        with redirect_stderr(StringIO()):  # Hydra prints each failure there, and the end of the search tells them all
            return returned.return_value
    except Exception as error:
        return {"state": FAILED, "error": ending(error)[1]}


def _description(start: "Config", space: list["Dimension"], goals: "Goals") -> dict[str, str]:
    """What two starts of one study have to have in common, line by line."""
    from compress.report.settings import flat

    settings = {name: value for name, value in flat(asdict(start)).items() if name not in _ELSEWHERE}
    return (
        {"hydra.sweeper.objectives": f"[{', '.join(map(str, goals.objectives))}]"}
        | {"hydra.sweeper.constraints": f"[{', '.join(map(str, goals.constraints))}]"}
        | settings
        | {dimension.key: str(dimension.distribution) for dimension in space}
    )


def _require_optuna() -> None:
    from compress.errors import UserError

    try:
        found = version("optuna")
    except PackageNotFoundError:
        found = "not installed"
    if not found[:1].isdigit() or int(found.split(".")[0]) < 5:
        raise UserError(f"hydra/sweeper=optuna, and optuna is {found}", "5 or later", 'run pip install -e ".[search]"')
