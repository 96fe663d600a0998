"""A trial as a recipe file, which repeats it: `python -m compress recipe=best.yaml`."""

from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from compress.config.schema import Config

# What the search gave the trial for its own ends, and what a recipe may not hold: it names code.
_LEFT_OUT = ("stop_below", "teacher.factory")


def recipe_text(config: Config, comments: list[str]) -> str:
    """Every setting of `config` that is not the default, and its seed, below `comments`; `teacher.factory` is left out.

    The first comment is what `python -m compress --help` shows of a recipe.
    """
    settings = _differing(config, Config())
    head = "".join(f"# {line}\n" for line in comments)
    content = settings | {"seed": config.seed}
    return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes texts like 1e3, which are texts to PyYAML and numbers to Hydra, which reads recipes."""


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
