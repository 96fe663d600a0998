"""A run and what gives its figures their weight: the same recipe on other seeds, and controls on the same budget."""

import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.config.schema import Config, StopBelowConfig
from compress.evaluation.concurrent_runs import registered_run
from compress.pipeline.ablations import check_controls, run_controls
from compress.pipeline.run import run_pipeline
from compress.report.write import write_run
from compress.training.out_of_memory import is_out_of_memory
from compress.utils.errors import UserError
from compress.utils.file_lock import lock_file
from compress.utils.files import CONTROLS, REPEATS, STAGE, read_json, validation_curve, write_json

log = logging.getLogger("compress")


def run_experiment(config: Config, folder: Path, wait: bool = False) -> dict[str, Any]:
    """The run in `folder`; those on `repeat.seeds` and the controls in folders of their own below it.

    Each of them goes on where it was, as the run itself does. Where another process writes into `folder`, this one
    waits for it, or else raises UserError. Returns what a search judges the run by: the last stage's `metrics`, and as
    `validation` of each stage the top-1 in percent on validation, an epoch each; nothing of a preflight. Raises
    UserError as `run_pipeline` does.
    """
    check_controls(config)
    if config.preflight:
        from compress.pipeline.preflight import run_preflight  # seconds, which other runs do without

        run_preflight(config, folder)
        return {}
    with lock_file(folder, "run", lambda holder: (_wait if wait else _refuse)(folder, holder)), registered_run():
        try:
            summary = _run_all(config, folder)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                str(error), "memory for what a step of training leaves free", "lower data.batch_size"
            ) from error
    return {"metrics": summary["stages"][-1]["metrics"], "validation": _validation(folder, config.stages)}


def _wait(folder: Path, holder: dict[str, Any]) -> None:
    log.info("waiting for process %s on %s, which writes into %s", holder.get("pid"), holder.get("host"), folder)


def _refuse(folder: Path, holder: dict[str, Any]) -> None:
    raise UserError(
        f"hydra.run.dir={folder}, in which process {holder.get('pid')} on {holder.get('host')} writes",
        "a folder that no other run uses",
        "wait until it has ended, or name another folder",
    )


def _validation(folder: Path, stages: list[str]) -> dict[str, list[float]]:
    records = {name: read_json(folder / f"{number:02d}_{name}" / STAGE) for number, name in enumerate(stages, 1)}
    return {name: validation_curve(record) for name, record in records.items()}


def _run_all(config: Config, folder: Path) -> dict[str, Any]:
    for name in (REPEATS, CONTROLS):
        (folder / name).unlink(missing_ok=True)  # of other settings, perhaps; the runs below are kept
    summary = run_pipeline(config, folder)
    config = replace(config, stop_below=StopBelowConfig())  # a control is there to be worse
    if config.repeat.seeds:
        write_json(folder / REPEATS, _repeat(config, folder, summary))
    if config.controls:
        write_json(folder / CONTROLS, run_controls(config, folder))
    if config.repeat.seeds or config.controls:
        log.info("the report, with these runs in it: %s", write_run(folder))
    return summary


def _repeat(config: Config, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """repeats.json: mean, standard deviation (of a sample, n - 1) and values of each figure over the seeds."""
    summaries = {config.seed: summary}
    for seed in config.repeat.seeds:
        if seed not in summaries:
            log.info("the same with seed %d", seed)
            summaries[seed] = run_pipeline(replace(config, seed=seed), folder / "repeats" / f"seed_{seed}")
    stages = zip(*(one["stages"] for one in summaries.values()), strict=True)
    return {
        "seeds": list(summaries),
        "stages": [{"stage": rows[0]["stage"], "figures": spread([row["metrics"] for row in rows])} for rows in stages],
    }


def spread(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each figure that is a number in all `records`: mean, standard deviation (0 for a single one) and values."""
    figures = {}
    for name in records[0]:
        values = [record[name] for record in records]
        if all(isinstance(value, (int, float)) for value in values):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            figures[name] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return figures
