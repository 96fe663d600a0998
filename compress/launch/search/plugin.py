"""What Hydra calls for hydra/sweeper=optuna; each start makes it known, so what is heavy waits until it is called."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """hydra/sweeper=optuna."""

    def __init__(self, **settings: Any) -> None:
        """Hydra passes what `setup` gets with the whole config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """As `compress.launch.search.sweeper.sweep`. Raises UserError without Optuna, too."""
        _require_optuna()
        from compress.launch.search.sweeper import sweep

        if self.config is None or self.launcher is None:
            raise ValueError("received sweep before setup; expected Hydra to set the sweeper up first")
        sweep(arguments, self.config, self.loader, self.launcher)


def register_search() -> None:
    """Makes hydra/sweeper=optuna known to Hydra."""
    plugins = Plugins.instance()
    plugins.register(OptunaSweeper)
    # Hydra starts plugins of the package hydra_plugins alone, and goes by their names.
    plugins.class_name_to_class["hydra_plugins.compress.OptunaSweeper"] = OptunaSweeper


def _require_optuna() -> None:
    from compress.utils.errors import UserError

    try:
        found = version("optuna")
    except PackageNotFoundError:
        found = "not installed"
    if not found[:1].isdigit() or int(found.split(".")[0]) < 5:
        raise UserError(f"hydra/sweeper=optuna, and optuna is {found}", "5 or later", 'run pip install -e ".[search]"')
