"""Writes a trial as a recipe file, which repeats it: `python -m compress recipe=best.yaml`."""

from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from compress.config.schema import Config

# The search sets the first for its own ends. A recipe may not have the second, which names code.
_LEFT_OUT = ("stop_below", "teacher.factory")


def recipe_text(config: Config, comments: list[str]) -> str:
    """Returns every setting of `config` that is not the default, and its seed, after `comments`.

    `teacher.factory` is left out. `python -m compress --help` prints the first comment as the recipe's description.
    """
    settings = _differing(config, Config())
    head = "".join(f"# {line}\n" for line in comments)
    content = settings | {"seed": config.seed}
    return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes texts like 1e3: PyYAML reads them as text, but Hydra, which reads recipes, as numbers."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _text)


def _differing(config: Any, default: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for item in fields(config):
        value, usual = getattr(config, item.name), getattr(default, item.name)
        if prefix + item.name in _LEFT_OUT:
            continue
        if is_dataclass(value):
            if inner := _differing(value, usual, f"{item.name}."):
                found[item.name] = inner
        elif value != usual:
            found[item.name] = value
    return found
