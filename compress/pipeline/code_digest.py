"""The digest of the source that a stage's result depends on: its module, with all that this imports of the package."""

import ast
from functools import cache
from pathlib import Path

from compress.utils.files import digest_of, digest_of_file

_PACKAGE = Path(__file__).resolve().parents[1]
# What many import and no result depends on: the Python interface, settings (a stage's own are in its key), and what
# only shows how a run goes.
_LEFT_OUT = (
    "compress", "compress.config.schema", "compress.config.options", "compress.config.validation",
    "compress.training.tensorboard", "compress.utils.console", "compress.utils.errors", "compress.utils.units",
)  # fmt: skip


@cache
def code_digest(*modules: str) -> str:
    """SHA-256 over the source of `modules`, by full name, and of every module of the package that they import.

    A change of the pages or of another stage leaves it as it is.
    """
    return digest_of({name: digest_of_file(path) for name, path in code_files(*modules).items()})


def code_files(*modules: str) -> dict[str, Path]:
    """The source files of `modules`, and of every module that they import, by full name."""
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
    """Full names of what a file imports from the package, wherever in it; a package's name brings its __init__."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == _PACKAGE.name]


def _source(name: str) -> Path | None:
    """The file of a module of the package; None for a name that is a function or a class in one."""
    inside = _PACKAGE.parent.joinpath(*name.split("."))
    candidates = (inside / "__init__.py", inside.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)
