"""The sub-commands: each name reaches its module, everything else is a run, and the help waits for no library."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.launch import cli
from compress.launch.commands import SUBCOMMANDS
from compress.launch.help import help_page

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ["recipe=mobilenet_int8", "prune.ratio=0.3"]
RUN = ["run", "preflight", *SUBCOMMANDS]


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The process's arguments -> what they hand to Hydra."""
    given: list[list[str]] = []
    monkeypatch.setattr(cli, "_run", lambda arguments: given.append(list(arguments)) or 0)

    def hand_on(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        assert cli.main() == 0
        assert cli.main(list(arguments)) == 0
        assert given[0] == given[1]
        given.pop()
        return given.pop()

    return hand_on


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_sub_command_gets_the_arguments_behind_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    module = importlib.import_module(SUBCOMMANDS[name][0])
    monkeypatch.setattr(module, "main", lambda arguments: given.append(arguments) or 7)
    assert cli.main([name, "a", "b"]) == 7
    assert given == [["a", "b"]]


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_sub_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture) -> None:
    try:
        status = cli.main([name, "--help"])
    except SystemExit as end:  # argparse's way
        status = end.code
    assert status == 0
    assert f"python -m compress {name}" in capsys.readouterr().out


def test_everything_else_is_a_run(handed_on: Callable[..., list[str]]) -> None:
    assert handed_on(*RECIPE) == RECIPE
    assert handed_on("run", *RECIPE) == RECIPE
    assert handed_on("--multirun", *RECIPE) == ["--multirun", *RECIPE]
    assert handed_on(*RECIPE, "report") == [*RECIPE, "report"]  # a name counts at the start alone
    assert handed_on() == handed_on("run") == []


def test_preflight_is_a_run_with_that_key(handed_on: Callable[..., list[str]]) -> None:
    assert handed_on("preflight", *RECIPE) == ["preflight=true", *RECIPE]


def test_a_preflight_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes the key in front of a flag, too, and the run is then a preflight and nothing more."""
    from compress.pipeline import preflight

    monkeypatch.setattr(preflight, "run_preflight", lambda config, folder: seen.append(config.preflight))
    monkeypatch.setattr(sys, "argv", ["compress"])
    seen: list[bool] = []
    assert cli.main(["preflight", *RECIPE, f"hydra.run.dir={tmp_path}"]) == 0
    assert seen == [True]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_the_help_lists_the_sub_commands() -> None:
    lines = help_page().splitlines()
    for name in RUN:
        assert any(line.split()[:1] == [name] for line in lines), name


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["preflight", "-h"]], ids=" ".join)
def test_the_help_imports_neither_torch_nor_hydra(arguments: list[str]) -> None:
    code = (
        "import sys; from compress.launch.cli import main; status = main(sys.argv[1:]);"
        "sys.exit(status or bool({'torch', 'hydra', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Sub-commands" in done.stdout


def test_a_mistake_in_a_sub_command_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("compress: received ")
    assert cli.main(["predict", str(tmp_path / "nowhere"), "cat.png"]) == 2
    assert capsys.readouterr().err.startswith("compress: received ")


def test_an_empty_cache_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["cache", "--dir", str(tmp_path), "list"]) == 0
    assert "0 stages, " in capsys.readouterr().out


def test_the_installed_command_is_this_one() -> None:
    assert '[project.scripts]\ncompress = "compress.launch.cli:main"\n' in (ROOT / "pyproject.toml").read_text()
