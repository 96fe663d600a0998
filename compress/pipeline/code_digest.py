"""The digest of the source that a stage's result depends on: its module and all that this imports from the package."""

import ast
from functools import cache
from pathlib import Path

from compress.utils.files import digest_of, digest_of_file

_PACKAGE = Path(__file__).resolve().parents[1]
# Modules that many import and no result depends on: the Python interface, the settings (those of a stage are in its
# key), and what only displays the progress of a run.
_LEFT_OUT = (
    "compress", "compress.config.schema", "compress.config.stage_sections", "compress.config.stage_settings",
    "compress.config.search_settings", "compress.config.data_settings", "compress.config.conditional_settings",
    "compress.config.options", "compress.config.validation",
    "compress.training.tensorboard", "compress.utils.console",
    "compress.utils.errors", "compress.utils.units",
)  # fmt: skip


@cache
def code_digest(*modules: str) -> str:
    """Returns the SHA-256 of the source of `modules`, by full name, and of every module of the package they import.

    A change of the report or of another stage does not change it.
    """
    return digest_of({name: digest_of_file(path) for name, path in code_files(*modules).items()})


def code_files(*modules: str) -> dict[str, Path]:
    """Returns the source files of `modules` and of every module that they import, by full name."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if path is None or name in found or name in _LEFT_OUT:
            continue
        found[name] = path
        waiting += _imports(path)
    return found


@cache
def _imports(path: Path) -> list[str]:
    """Returns the full names that a file imports from the package, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == _PACKAGE.name]


def _source(name: str) -> Path | None:
    """Returns the file of a module of the package; None for the name of a function or a class."""
    inside = _PACKAGE.parent.joinpath(*name.split("."))
    candidates = (inside / "__init__.py", inside.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)
