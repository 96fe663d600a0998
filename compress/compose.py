"""Where Hydra ends: recipes and schema go in as config groups, plain dataclasses and one-line errors come out."""

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compress.config import Config, check
from compress.errors import UserError
from compress.help import RECIPES


def register() -> None:
    """Makes the schema and recipes/*.yaml known to Hydra, each recipe an option of the group `recipe`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for path in sorted(RECIPES.glob("*.yaml")):
        store.store(group="recipe", name=path.stem, package="_global_", node=OmegaConf.load(path))


def to_config(composed: DictConfig) -> Config:
    """The composed config as checked dataclasses. Raises UserError for a value outside its range or left unset."""
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    check(config)
    return config


def explain(error: Exception) -> UserError:
    """What Hydra or OmegaConf complain of, as the one line that a user can act on."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [
        line.strip() for text in dict.fromkeys((str(error), str(cause))) for line in text.splitlines() if line.strip()
    ]
    if any(line.startswith("Available options") for line in lines):
        at = next(i for i, line in enumerate(lines) if line.startswith("Available options"))
        names = [line for line in lines[at + 1 :] if " " not in line and not line.startswith("Config")]
        return UserError(" ".join(lines[:at]), f"one of {', '.join(dict.fromkeys(names))}", "name one of these")
    return UserError(" ".join(lines), "keys and values that exist", "see python -m compress --help")
