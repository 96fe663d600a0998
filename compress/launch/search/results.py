"""Writes the results of a search, however it ended: the Pareto set as a file and a table, and the best recipe."""

from pathlib import Path
from typing import Any

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from compress.config.schema import Config
from compress.launch.search.best_recipe import recipe_text
from compress.launch.search.objectives import Goals, take_figure
from compress.launch.search.pareto import best_trial, is_feasible, pareto_set
from compress.launch.search.trials import COMPLETE, RUNNING, Trial
from compress.utils.file_lock import lock_file
from compress.utils.files import FAILED, GIVEN_UP, write_bytes, write_json
from compress.utils.metric import metric_of
from compress.utils.units import count_text, setting_text, size_text

PARETO, BEST = "pareto.json", "best.yaml"

_WIDTH = 80  # columns of a terminal


def write_results(
    folder: Path, study: dict[str, str], trials: list[Trial], goals: Goals, config: Config | None
) -> None:
    """Writes pareto.json, and best.yaml where a trial is complete: `config` has to be that of the best one, or None.

    `study` names the study and the database that has the trials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = best_trial(trials, goals)
    with lock_file(folder, "search"):  # processes that share a study may share its folder
        write_json(folder / PARETO, _record(study, trials, goals))
        if best and config:
            write_bytes(folder / BEST, recipe_text(config, _comments(best, trials, goals, config)).encode())


def print_results(folder: Path, trials: list[Trial], goals: Goals) -> None:
    """Prints the Pareto set, 80 columns wide, how the other trials ended, and the path of the recipe."""
    console, best = get_console(), best_trial(trials, goals)
    if best:
        shown = pareto_set(trials, goals) or [best]
        console.print(_figures_table(shown, best, goals), _settings_table(shown))
    console.print(_tally(trials))
    for trial in trials:
        if trial.state in (FAILED, GIVEN_UP):
            console.print(f"trial {trial.number} {_ended(trial)}: {trial.reason}", markup=False, highlight=False)
    if best:
        kept = is_feasible(best, goals)
        nearest = f"NO TRIAL KEEPS THE CONSTRAINTS ({_texts(goals.constraints)}); the nearest is shown"
        console.print("shown are those that no other one beats; * is the best" if kept else nearest, highlight=False)
        for line in cautions(trials, goals):
            console.print(line, highlight=False)
        console.print(f"the recipe of trial {best.number}: {folder / BEST}", highlight=False, soft_wrap=True)


def cautions(trials: list[Trial], goals: Goals) -> list[str]:
    """Returns how far the figures of the chosen trials can be trusted."""
    shared = [trial for trial in trials if trial.figures.get("environment", {}).get("runs_beside")]
    busy = f"{', '.join(goals.timed)}: taken of {len(shared)} trials while other runs went on beside them"
    return [_optimism(goals), *([busy] if shared and goals.timed else [])]


def _optimism(goals: Goals) -> str:
    if goals.on_test:
        return (
            f"chosen by {', '.join(goals.on_test)}, which the test images gave: of the trials chosen it is too good, "
            "as the best of many tries is. To keep the test images unseen, search for deployed_val_top1_percent and "
            "bound deployed_val_delta_points"
        )
    return (
        "the figures that trials were chosen by are too good of those chosen, as the best of many tries is; those on "
        "the test images are not, for nothing was chosen by them"
    )


def _record(study: dict[str, str], trials: list[Trial], goals: Goals) -> dict[str, Any]:
    best = best_trial(trials, goals)
    return {
        **study,
        "objectives": [str(objective) for objective in goals.objectives],
        "constraints": [str(constraint) for constraint in goals.constraints],
        "cautions": cautions(trials, goals),
        "trials": {state.replace(" ", "_"): count for state, count in _counts(trials).items()},
        "pareto": [_row(trial, goals) for trial in pareto_set(trials, goals)],
        "best": _row(best, goals) if best else None,
        "complete": [_row(trial, goals) for trial in _in(trials, COMPLETE)],
        "given_up": [_ending(trial) for trial in _in(trials, GIVEN_UP)],
        "failed": [_ending(trial) for trial in _in(trials, FAILED)],
    }


def _on_test(trial: Trial) -> tuple[str, str]:
    """Returns the names of the accuracy figures of a trial on the test images."""
    key = metric_of(trial.figures).key
    return f"deployed_{key}_percent", f"{key}_delta_points"


def _row(trial: Trial, goals: Goals) -> dict[str, Any]:
    figures = {name: take_figure(trial.figures, name) for name in goals.figures}
    return {
        **_place(trial),
        **({} if trial.copy_of is None else {"copy_of": trial.copy_of}),
        "figures": figures,
        "feasible": is_feasible(trial, goals),
        "on_test": {name: trial.figures.get(name) for name in _on_test(trial)},
    }


def _ending(trial: Trial) -> dict[str, Any]:
    return _place(trial) | {"reason": trial.reason}


def _place(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "folder": trial.folder, "host": trial.host, "settings": trial.settings}


def _comments(best: Trial, trials: list[Trial], goals: Goals, config: Config) -> list[str]:
    figures = ", ".join(f"{name} {_text(name, take_figure(best.figures, name))}" for name in goals.figures)
    kept, own = is_feasible(best, goals), config.teacher.factory
    return [
        f"the best of {len(_in(trials, COMPLETE))} trials of a search: {figures}",
        f"trial {best.number}; to {_texts(goals.objectives)}",
        *([f"{'keeps' if kept else 'DOES NOT KEEP'}: {_texts(goals.constraints)}"] if goals.constraints else []),
        *cautions(trials, goals),
        *([f"a recipe may name no code: run it with teacher.factory={own}"] if own else []),
    ]


def _figures_table(shown: list[Trial], best: Trial, goals: Goals) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), width=_WIDTH)
    columns = list(dict.fromkeys((*goals.figures, *(name for name in _on_test(best) if name in best.figures))))
    table.add_column("trial", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name.replace("_", " ").replace(".", " "), justify="right", max_width=9)
    for trial in shown:
        mark = "* " if trial.number == best.number else ""
        figures = (_text(name, take_figure(trial.figures, name)) for name in columns)
        table.add_row(f"{mark}{trial.number}", *figures)
    return table


def _settings_table(shown: list[Trial]) -> Table:
    """Returns a table with a row for each trial's settings: long names have no room next to the figures."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), width=_WIDTH)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold", ratio=1)
    for trial in shown:
        settings = (f"{key} {setting_text(str(value))}" for key, value in trial.settings.items())
        table.add_row(str(trial.number), Text(", ".join(settings)))  # Text: a list's brackets would be markup
    return table


def _tally(trials: list[Trial]) -> str:
    named = ", ".join(f"{count} {state}" for state, count in _counts(trials).items() if count)
    return f"{len(trials)} trials: {named or 'none'}"


def _counts(trials: list[Trial]) -> dict[str, int]:
    return {state: len(_in(trials, state)) for state in (COMPLETE, GIVEN_UP, FAILED, RUNNING)}


def _ended(trial: Trial) -> str:
    return "was given up" if trial.state == GIVEN_UP else "failed"


def _text(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return size_text(value)
    return count_text(value) if name.endswith(("params", "macs")) else f"{value:.4g}"


def _texts(goals: list) -> str:
    return ", ".join(map(str, goals))


def _in(trials: list[Trial], state: str) -> list[Trial]:
    return [trial for trial in trials if trial.state == state]
