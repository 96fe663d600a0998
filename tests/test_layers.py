"""The arrows between the project's parts go one way, and Hydra stays at the edge."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "compress"

# From the top; a part may import from those below its own line, and from its own line where that is said.
LAYERS = [
    {"__main__", "api"},
    {"launch", "predict"},
    {"search", "study"},
    {"controls", "preflight"},
    {"pipeline"},
    {"making"},
    {"compute", "trial"},
    {"rows"},
    {"stages"},
    {"measure"},
    {"restore", "refusals"},
    {"answers", "losses", "pruning", "labelling", "transfer"},
    {"train"},
    {"step"},
    {"context", "train_outputs", "training"},
    {"validation"},
    {"checkpoint", "devices", "folding", "heap", "lean", "memory", "precision", "signals"},
    {"export"},
    {"shared_statistics"},
    {"artifact"},
    {"models"},
    {"data", "quantization"},
    {"curves"},
    {"cache", "console", "lockstep", "report"},
    {"tracing"},
    {"compose"},
    {"overrides"},
    {"config", "help"},
    {"code"},
    {"cores", "cpu", "files", "onnx_session", "pixels"},
    {"floors", "layout"},
    {"nearest", "user_code"},
    {"errors"},
    {"torchrun", "units", ""},
]
INSIDE_ONE_LAYER = {("help", "config")}
PYTHON_FACE = {("", "predict"), ("", "api")}  # what `import compress` offers, imported when it is called
SPACE = PACKAGE / "search" / "space.py"  # reads Hydra's sweep syntax
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    if path.name == "__main__.py":  # a command of its own, whichever part it is about
        return "__main__"
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The full names of what a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = part_of(path)
    for name in imports(path):
        if name.split(".")[0] != "compress":
            continue
        other = name.split(".")[1] if len(name.split(".")) > 1 else ""
        other = other if other in LEVEL else ""  # `from compress import __version__`
        allowed = other == own or LEVEL[other] > LEVEL[own] or (own, other) in INSIDE_ONE_LAYER | PYTHON_FACE
        assert allowed, f"{path.name} imports {name}: {own} must not know {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_edge_knows_hydra(path: Path) -> None:
    hydra = {name for name in imports(path) if name.split(".")[0] in ("hydra", "omegaconf")}
    assert not hydra or part_of(path) in ("__main__", "compose", "launch", "overrides") or path == SPACE


def test_stages_never_import_each_other() -> None:
    for path in (PACKAGE / "stages").glob("[a-z]*.py"):
        assert not {name for name in imports(path) if name.startswith("compress.stages")}


def test_nothing_unpickles_or_runs_text() -> None:
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("eval", "exec", "pickle.load", "pickle.loads"):
                raise AssertionError(f"{path.name} calls {ast.unparse(call.func)}")
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(call)
