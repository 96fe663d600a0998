"""The page that `python -m compress --help` prints. Recipes, data sets and keys are read from their definitions."""

from pathlib import Path

from compress.config.options import as_typed, describe
from compress.config.paths import CONF, RECIPES
from compress.config.schema import Config, SearchConfig
from compress.launch.commands import SUBCOMMANDS

_PAGE = """\
Compresses a trained image classifier: prune, distill, quantize to int8, a folder a stage.

    python -m compress [run] recipe=NAME [group=option ...] [key=value ...]
    python -m compress recipe=FILE.yaml
    python -m compress --multirun recipe=NAME prune.ratio=0.3,0.5,0.7
    python -m compress --multirun recipe=NAME hydra/sweeper=optuna 'prune.ratio=interval(0.2,0.8)'
    python -m compress --multirun hydra/launcher=joblib ...      jobs in parallel; also ray, submitit_slurm

Sub-commands (python -m compress NAME --help; an installed package has the command `compress` too)
{commands}

Recipes (recipe=NAME)
{recipes}

Data sets (data=NAME)
{data}

Keys (key=default)
{keys}

Keys of a search (hydra/sweeper=optuna)
{search}

A run goes to outputs/<recipe>/<date>_<time>, or to hydra.run.dir=FOLDER; the same folder again goes on where it
stopped. --cfg job prints the composed config; --hydra-help lists Hydra's own flags.
"""


# The sub-commands that run a recipe.
_RUNS = {
    "run": "runs a recipe; the default, where no sub-command is named",
    "preflight": "estimates the result of a run without training (run preflight=true)",
}


def help_page() -> str:
    """Returns the page as text."""
    recipes, data = (
        "\n".join(f"    {path.stem:24} {_first_comment(path)}" for path in sorted(folder.glob("*.yaml")))
        for folder in (RECIPES, CONF / "data")
    )
    search = SearchConfig(study="NAME")  # its default is the recipe's name
    helps = _RUNS | {name: help for name, (_, help) in SUBCOMMANDS.items()}
    return _PAGE.format(
        commands="\n".join(f"    {name:24} {help}" for name, help in helps.items()),
        recipes=recipes,
        data=data,
        keys=_keys(Config()),
        search=_keys(search, "hydra.sweeper.", skipped=("_target_",)),
    )


def _keys(config: Config | SearchConfig, prefix: str = "", skipped: tuple[str, ...] = ()) -> str:
    rows = [row for row in describe(config, prefix) if row[0].removeprefix(prefix) not in skipped]
    return "\n".join(f"    {f'{name}={as_typed(value)}':40} {text}" for name, value, text in rows)


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
