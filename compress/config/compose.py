"""The edge to Hydra: recipes and schema go in as config groups, plain dataclasses and one-line errors come out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compress.config.overrides import (
    known_keys,
    overrides_of,
    parse_override,
    quote_overrides,
    quote_text_value,
    unknown_key,
)
from compress.config.paths import CONF, RECIPES
from compress.config.schema import Config, SearchConfig
from compress.config.validation import check
from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean


def register(overrides: Sequence[str] = ()) -> None:
    """Registers the schema and recipes/*.yaml with Hydra, each recipe as an option of the group `recipe`.

    Also registers each file that `overrides` name, as in recipe=outputs/best.yaml. Raises UserError for a file that is
    no recipe.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/sweeper", name="optuna", node=SearchConfig)
    for path in sorted(RECIPES.glob("*.yaml")):
        store.store(group="recipe", name=path.stem, package="_global_", node=read_recipe(path))
    for name in recipe_files(overrides):
        *folders, file = (
            part for part in name.split("/") if part
        )  # as Hydra splits it, with or without a leading slash
        group = "/".join(["recipe", *folders])
        store.store(group=group, name=file, package="_global_", node=read_recipe(Path(name)))


def recipe_files(overrides: Sequence[str]) -> list[str]:
    """Returns the recipes of a command line that are files."""
    names: list[str] = []
    for override in overrides_of("recipe", overrides):
        names += override.sweep_string_iterator() if override.is_sweep_override() else [str(override.value())]
    return [name for name in (text.strip("'\"") for text in names) if name.endswith(".yaml")]


def with_output_folders(arguments: list[str]) -> list[str]:
    """Adds output folders with the name of a recipe's file: Hydra would put the file's whole path into theirs."""
    files = recipe_files(arguments)
    if not files:
        return arguments
    keys = [override.key_or_group if override else "" for override in map(parse_override, arguments)]
    at = keys.index("recipe") + 1
    name, now = Path(files[0]).stem, "${now:%Y-%m-%d}_${now:%H-%M-%S}"
    folders = {
        "hydra.run.dir": f"outputs/{name}/{now}",
        "hydra.sweep.dir": f"outputs/{name}/sweep_{now}",
    }
    return [
        *arguments[:at],
        *(
            f"{key}={quote_text_value(key, folder, multirun=False)}"
            for key, folder in folders.items()
            if key not in keys
        ),
        *arguments[at:],
    ]


def read_recipe(path: Path) -> DictConfig:
    """Reads a recipe, which may come from a stranger: only settings of this project, nothing that Hydra acts on.

    Raises UserError for a file that is missing or no YAML, and for one with Hydra's own settings, a `_target_`, an
    interpolation (a resolver may run code or read secrets) or a default other than a data set.
    """
    expected = "a recipe: keys of python -m compress --help with plain values, and at most a data set under defaults"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(
            f"recipe={path}, which cannot be read: {error}", expected, "mend the path or the file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"recipe={path} with {type(content).__name__}", expected, "write key: value, a line each")
    settings = {name: value for name, value in content.items() if name != "defaults"}
    strange = _strange(settings) or _strange_default(content.get("defaults", []))
    if strange:
        raise UserError(f"recipe={path} with {strange}", expected, "remove it, if you trust the rest")
    return OmegaConf.create(content)


_CODE = ("hydra", "factory")  # keys whose values can name code: Hydra's own, and teacher.factory


def _strange(content: Any) -> str | None:
    """Returns the first entry of a recipe that is more than a setting; None where there is none."""
    if isinstance(content, dict):
        owned = [name for name in content if not isinstance(name, str) or name.startswith("_") or name in _CODE]
        return f"the key {owned[0]}" if owned else next(filter(None, map(_strange, content.values())), None)
    if isinstance(content, list):
        return next(filter(None, map(_strange, content)), None)
    return f"the interpolation {content}" if isinstance(content, str) and "${" in content else None


def _strange_default(defaults: Any) -> str | None:
    """Returns the first entry under defaults that is no data set; None where there is none.

    Hydra would follow other entries to any config on its search path, which includes installed packages.
    """
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        named = (
            isinstance(entry, dict) and list(entry) == ["override /data"] and isinstance(entry["override /data"], str)
        )
        if not named or not entry["override /data"].replace("_", "").isalnum():
            return f"{entry} under defaults"
    return None


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the checked config of a recipe, by name or file, outside Hydra's command line.

    Raises UserError for an invalid recipe, key or value.
    """
    arguments = quote_overrides([f"recipe={recipe}", *overrides])
    register(arguments)
    outer = GlobalHydra.instance().hydra  # not None where a Hydra application calls this function
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return to_config(compose("config", arguments))
    except HydraException as error:
        raise to_user_error(error) from error
    finally:
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def to_config(composed: DictConfig) -> Config:
    """Returns the composed config as checked dataclasses. Raises UserError for a value that is invalid or missing."""
    try:
        config = cast(Config, OmegaConf.to_object(composed))  # its schema, which `register` stored
    except OmegaConfBaseException as error:
        raise to_user_error(error) from error
    check(config)
    return config


def to_user_error(error: Exception) -> UserError:
    """Turns an error of Hydra or OmegaConf into a single line that a user can act on."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [
        line.strip() for text in dict.fromkeys((str(error), str(cause))) for line in text.splitlines() if line.strip()
    ]
    text = " ".join(lines)
    if any(line.startswith("Available options") for line in lines):
        at = next(i for i, line in enumerate(lines) if line.startswith("Available options"))
        names = [line for line in lines[at + 1 :] if " " not in line and not line.startswith("Config")]
        asked = re.search(r"Could not find '[^']*?([^'/]+)'", text)
        meant = did_you_mean(asked[1], names) if asked else ""
        return UserError(" ".join(lines[:at]), f"one of {', '.join(dict.fromkeys(names))}", f"{meant}name one of these")
    key = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text) or re.search(
        r"full_key: (\S+)", text
    )
    if key is None:
        return UserError(text, "keys and values that exist", "see python -m compress --help")
    known = known_keys()
    if key[1] not in known:
        recipe = re.search(r"In '(recipe/[^']+)'", text)
        return unknown_key(key[1], f" of {recipe[1]}" if recipe else "")
    if "BasicSweeperConf" in text:
        return UserError(f"{key[1]} without a search", "hydra/sweeper=optuna", "add --multirun hydra/sweeper=optuna")
    received = next((line for line in lines if "alue" in line), text)
    return UserError(f"{key[1]}: {received}", known[key[1]], f"set {key[1]} to such a value")
