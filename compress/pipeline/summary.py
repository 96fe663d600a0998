"""The summary of a run: the rows of summary.json, and TensorBoard's curves over stages and its table of runs."""

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
    """Returns a row for each stage: its metrics, and their ratios to the teacher's."""
    rows: list[dict[str, Any]] = []
    for stage_dir in done:
        metrics = files.read_json(stage_dir / files.METRICS)
        teacher = rows[0]["metrics"] if rows else metrics
        rows.append(
            {
                "stage": stage_dir.name,
                "metrics": metrics,
                "times_smaller": teacher["size_bytes"] / metrics["size_bytes"],
                "times_faster": metrics["speedup_vs_teacher"],
                "times_fewer_macs": teacher["macs"] / metrics["macs"],
                "times_fewer_params": teacher["params"] / metrics["params"],
                "points_lost": 0.0 - metric_of(metrics).delta(metrics),
                "warnings": int8_warnings(files.read_json(stage_dir / files.STAGE)["notes"]),
            }
        )
    return rows


def log_stages(done: list[Path], config: Config) -> None:
    """Writes the stages so far to TensorBoard's run `stages`: a curve for each figure, and a row in HPARAMS."""
    with TensorBoardWriter(done[0].parent / "tensorboard" / "stages") as writer:
        writer.log_hparams(table_settings(config))
        for number, stage_dir in enumerate(done, 1):
            writer.by_stage(number, stage_figures(files.read_json(stage_dir / files.METRICS)))


def table_settings(config: Config) -> dict[str, bool | int | float | str]:
    """Returns TensorBoard's hparams: all settings of the stages that run, and other settings that are not the default.

    The settings of early stopping are left out.
    """
    flat: dict[str, bool | int | float | str] = {}
    for (name, value, _), (_, default, _) in zip(describe(config), describe(type(config)()), strict=True):
        section = name.split(".")[0]
        other = section not in STAGES and section != "stop_below" and value != default
        if section in config.stages or other:
            flat[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def stage_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of metrics.json by their tags.

    TensorBoard sorts tags by name, and its table shows the first five: those of the deployed file come first.
    """
    key = metric_of(metrics).key
    first = (f"deployed_{key}_percent", f"{key}_delta_points", "size_bytes", "latency_ms_p50", "speedup_vs_teacher")
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    return {f"{'summary' if name in first else 'summary_more'}/{name}": value for name, value in numbers.items()}
