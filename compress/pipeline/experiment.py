"""A run with the evidence for its figures: the same recipe on other seeds, and ablations on the same budget."""

import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.config.schema import Config, StopBelowConfig
from compress.evaluation.concurrent_runs import registered_run
from compress.pipeline.ablations import check_ablations, run_ablations
from compress.pipeline.run import run_pipeline
from compress.report.write import write_run
from compress.training.out_of_memory import is_out_of_memory
from compress.utils.errors import UserError
from compress.utils.file_lock import lock_file
from compress.utils.files import CONTROLS, REPEATS, STAGE, read_json, validation_curve, write_json

log = logging.getLogger("compress")


def run_experiment(config: Config, folder: Path, wait: bool = False) -> dict[str, Any]:
    """Runs the recipe in `folder`, then those on `repeat.seeds` and the ablations in folders below it.

    Each run resumes where it was. Where another process writes into `folder`, waits for it if `wait` is set, and raises
    UserError otherwise. Returns what a search judges a run by: the `metrics` of the last stage, and as `validation` of
    each stage the validation metric in percent, one value an epoch; an empty dict for a preflight. Raises UserError as
    `run_pipeline` does.
    """
    check_ablations(config)
    if config.preflight:
        from compress.pipeline.preflight import run_preflight  # imported late: it takes seconds

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
        (folder / name).unlink(missing_ok=True)  # they may be of other settings; the runs below stay
    summary = run_pipeline(config, folder)
    config = replace(config, stop_below=StopBelowConfig())  # an ablation may be worse
    if config.repeat.seeds:
        write_json(folder / REPEATS, _repeat(config, folder, summary))
    if config.controls:
        write_json(folder / CONTROLS, run_ablations(config, folder))
    if config.repeat.seeds or config.controls:
        log.info("the report, with these runs in it: %s", write_run(folder))
    return summary


def _repeat(config: Config, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Runs the other seeds; returns repeats.json: mean, sample standard deviation (n - 1) and values of each figure."""
    summaries = {config.seed: summary}
    for seed in config.repeat.seeds:
        if seed not in summaries:
            log.info("the same with seed %d", seed)
            summaries[seed] = run_pipeline(replace(config, seed=seed), folder / "repeats" / f"seed_{seed}")
    stages = zip(*(one["stages"] for one in summaries.values()), strict=True)
    return {
        "seeds": list(summaries),
        "stages": [
            {"stage": rows[0]["stage"], "figures": seed_statistics([row["metrics"] for row in rows])} for rows in stages
        ],
    }


def seed_statistics(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns mean, sample standard deviation (0 for a single record) and values of each number in all `records`."""
    figures = {}
    for name in records[0]:
        values = [record[name] for record in records]
        if all(isinstance(value, (int, float)) for value in values):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            figures[name] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return figures
