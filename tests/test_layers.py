"""The arrows between the project's parts go one way, and Hydra stays at the edge."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "compress"


def test_imports_keep_the_contracts_of_pyproject() -> None:
    """In a process of its own: once compress is imported, its path has the commands too, as compress.cache for one."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_root_of_the_package_has_few_entries() -> None:
    # py.typed is no code: PEP 561 wants the empty file there, for type checkers to read the package's annotations.
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= 15


def test_nothing_unpickles_or_runs_text() -> None:
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            assert function not in ("eval", "exec", "pickle.load", "pickle.loads"), path.name
            assert function != "torch.load" or "weights_only=True" in ast.unparse(call), path.name
