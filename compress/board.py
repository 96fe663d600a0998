"""A finished stage in TensorBoard: the page's charts, and its row in the table of all runs."""

from pathlib import Path

from compress import files
from compress.config import Config
from compress.curves import Curves
from compress.rows import table_figures, table_settings


def show_stage(curves: Curves, name: str, stages: list[Path], config: Config) -> None:
    """Adds the last of the folders `stages`, which is that of stage `name`."""
    from compress.report.figures import stage_figures  # matplotlib takes a second

    for title, figure in stage_figures(stages).items():
        curves.figure(title, figure)
    curves.table_row(table_settings(config, name), table_figures(files.read_json(stages[-1] / files.METRICS)))
