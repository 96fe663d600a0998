"""What computes a stage: the digest of its source, with all that it imports of this package, and the libraries."""

import ast
from functools import cache
from pathlib import Path

from compress.files import digest_of, digest_of_file

_PACKAGE = Path(__file__).resolve().parent


@cache
def code_digest(*modules: str) -> str:
    """SHA-256 over the source of `modules`, by full name, and of every module of the package that they import.

    A change of the pages or of another stage leaves it as it is.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if path is None or name in found:
            continue
        found[name] = digest_of_file(path)
        waiting += _imports(path)
    return digest_of(found)


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
