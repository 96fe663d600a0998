"""A stage's figures as others read them: the rows of summary.json, and of TensorBoard's table of runs."""

from pathlib import Path
from typing import Any

from compress.config.options import describe
from compress.config.schema import Config
from compress.report.verdict import int8_warnings
from compress.stages import STAGES
from compress.training.tensorboard import TensorBoardWriter
from compress.utils import files
from compress.utils.metric import metric_of


def summary_rows(done: list[Path]) -> list[dict[str, Any]]:
    """A row a stage: its metrics, and each against the teacher's."""
    rows = []
    for stage in done:
        metrics = files.read_json(stage / files.METRICS)
        teacher = rows[0]["metrics"] if rows else metrics
        rows.append(
            {
                "stage": stage.name,
                "metrics": metrics,
                "times_smaller": teacher["size_bytes"] / metrics["size_bytes"],
                "times_faster": metrics["speedup_vs_teacher"],
                "times_fewer_macs": teacher["macs"] / metrics["macs"],
                "times_fewer_params": teacher["params"] / metrics["params"],
                "points_lost": 0.0 - metric_of(metrics).delta(metrics),
                "warnings": int8_warnings(files.read_json(stage / files.STAGE)["notes"]),
            }
        )
    return rows


def log_hparams(curves: TensorBoardWriter, name: str, stage: Path, config: Config) -> None:
    """The stage `name`, whose folder is `stage`, as a row of TensorBoard's table of all runs."""
    curves.table_row(table_settings(config, name), table_figures(files.read_json(stage / files.METRICS)))


def table_settings(config: Config, stage: str) -> dict[str, bool | int | float | str]:
    """TensorBoard's hparams: the settings of the stages that are run, and of the others those that are not the default.

    TensorBoard shows the first few: those that differ between runs, by name. The capital brings the stage to the front.
    What only says when to give up is left out.
    """
    flat: dict[str, bool | int | float | str] = {"Stage": stage}
    for (name, value, _), (_, default, _) in zip(describe(config), describe(type(config)()), strict=True):
        section = name.split(".")[0]
        other = section not in STAGES and section != "stop_below" and value != default
        if section in config.stages or other:
            flat[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def table_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json by their tags.

    TensorBoard's table shows the first five by name: the capital brings what ships to the front.
    """
    key = metric_of(metrics).key
    first = (f"deployed_{key}_percent", f"{key}_delta_points", "size_bytes", "latency_ms_p50", "speedup_vs_teacher")
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    return {f"{'Key_figures' if name in first else 'figures'}/{name}": value for name, value in numbers.items()}
