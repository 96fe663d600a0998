"""The sweeper that Hydra calls for hydra/sweeper=optuna. Every start registers it, so slow imports wait for a call."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """The class behind hydra/sweeper=optuna."""

    def __init__(self, **settings: Any) -> None:
        """Ignores the settings: `setup` receives them with the whole config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Calls `compress.launch.search.sweeper.sweep`. Also raises UserError where Optuna is not installed."""
        _require_optuna()
        from compress.launch.search.sweeper import sweep

        if self.config is None or self.launcher is None:
            raise ValueError("received sweep before setup; expected Hydra to set the sweeper up first")
        sweep(arguments, self.config, self.loader, self.launcher)


def register_search() -> None:
    """Registers hydra/sweeper=optuna with Hydra."""
    plugins = Plugins.instance()
    plugins.register(OptunaSweeper)
    # Hydra only starts plugins whose names are in the package hydra_plugins.
    plugins.class_name_to_class["hydra_plugins.compress.OptunaSweeper"] = OptunaSweeper


def _require_optuna() -> None:
    from compress.utils.errors import UserError

    try:
        found = version("optuna")
    except PackageNotFoundError:
        found = "not installed"
    if not found[:1].isdigit() or int(found.split(".")[0]) < 5:
        raise UserError(f"hydra/sweeper=optuna, and optuna is {found}", "5 or later", 'run pip install -e ".[search]"')
