"""The launchers that a sweep can choose: conf/launchers/*.yaml, merged over the defaults of their packages."""

import shutil

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from compress.config.overrides import overrides_of
from compress.config.paths import CONF
from compress.utils.errors import UserError

EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
_GROUP = "hydra/launcher"


def register_launchers() -> None:
    """Merges each file of conf/launchers over the option of its name, where the package of that option is installed.

    Hydra would also read a file of that name in conf/hydra/launcher, but warns where a package has the same name.
    """
    Plugins.instance()  # first: plugins that Hydra finds later would overwrite ours
    store = ConfigStore.instance()
    known = store.list(_GROUP)
    for name in EXTRAS:
        if f"{name}.yaml" in known:
            own = OmegaConf.load(CONF / "launchers" / f"{name}.yaml")
            found = store.load(f"{_GROUP}/{name}.yaml")
            store.store(group=_GROUP, name=name, node=OmegaConf.merge(found.node, own), provider=found.provider)


def require_one_kind_of_processes(arguments: list[str], processes: int) -> None:
    """Raises UserError where torchrun started several `processes`, and a launcher is to start its own."""
    launchers = [launcher for launcher in overrides_of(_GROUP, arguments) if launcher.value() != "basic"]
    if processes > 1 and launchers:
        raise UserError(
            f"{launchers[0].input_line} under torchrun, with {processes} processes",
            "one of the two",
            "leave hydra/launcher out: the jobs then take turns on all devices",
        )


def to_launcher_error(error: Exception, launcher: str) -> UserError | None:
    """Returns how to fix an option, or its class `launcher`, that cannot work here; None for any other `error`."""
    option = str(getattr(error, "missing_cfg_file", "")).removeprefix(f"{_GROUP}/")
    if isinstance(error, MissingConfigException) and option in EXTRAS:
        extra = EXTRAS[option]
        return UserError(
            f"{_GROUP}={option}, which is not installed", f"its extra, {extra}", f'pip install -e ".[{extra}]"'
        )
    if launcher == "SlurmLauncher" and shutil.which("srun") is None:
        return UserError(
            f"{_GROUP}=submitit_slurm where there is no srun",
            "a machine of a Slurm cluster",
            f"start it on one, or take {_GROUP}=submitit_local",
        )
    return None
