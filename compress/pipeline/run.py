"""The whole flow: each stage is reused or run, saved and measured; the next one reads what was saved."""

import logging
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compress.config.schema import Config
from compress.evaluation.emissions import require_country
from compress.export import require_installed
from compress.models import check_model
from compress.pipeline.compute import RunContext, prepare, stage_inputs
from compress.pipeline.summary import log_stages, summary_rows
from compress.report.seen_validation import seen_validation
from compress.report.write import write_run
from compress.stages import check_order, networks
from compress.training.early_stopping import check_early_stopping
from compress.utils import files
from compress.utils.console import print_summary

log = logging.getLogger("compress")


def run_pipeline(config: Config, folder: Path) -> dict[str, Any]:
    """Runs `config.stages` into `folder` and returns the content of summary.json.

    A whole stage with the same settings and the same input is reused, from the folder or from the cache. Where only
    the targets, the measurement or the CPU differ, its weights are reused, and its files are written and measured
    again. Raises UserError for a mistake in the settings or the data.
    """
    check_order(config.stages)
    for network in networks(config):
        check_model(network.name, network.key)
    require_installed(config.export.targets)
    require_country(config.measure.country)
    run = prepare(config)
    with closing(run.data):
        return _run_stages(run, folder)


def _run_stages(run: RunContext, folder: Path) -> dict[str, Any]:
    config = run.config
    sizes = ", ".join(f"{count} {split}" for split, count in run.data.sizes.items())
    log.info("%s: %s images, %d classes", config.data.name, sizes, len(run.data.classes))
    if run.ranks.world > 1:
        log.info("%d processes share each batch", run.ranks.world)

    done: list[Path] = []
    parent = None
    for number, name in enumerate(config.stages, 1):
        stage_dir = folder / f"{number:02d}_{name}"
        record = _run_stage(name, stage_dir, done, stage_inputs(name, run, parent), run)
        files.remove_training(stage_dir)
        # A stage that was trained here has checked this itself, after each epoch; a reused one has not.
        check_early_stopping(name, files.validation_curve(record), getattr(config.stop_below, name))
        parent = _parent_key(record, stage_dir)
        done.append(stage_dir)
        if len(done) == 1 and (remark := seen_validation(record, files.read_json(stage_dir / files.METRICS))):
            log.warning("%s", remark)

    rows = summary_rows(done)
    summary = {"seed": config.seed, "data": config.data.name, "stages": rows}
    files.write_json(folder / "summary.json", summary)
    print_summary(rows)
    log.info("the file to deploy: %s", done[-1] / files.ONNX)
    log.info("the report: %s", write_run(folder))
    return summary


def _run_stage(name: str, stage_dir: Path, done: list[Path], inputs: dict[str, Any], run: RunContext) -> dict[str, Any]:
    """Returns the record of a stage: reuses the folder, fetches the stage from the cache, or computes it."""
    key = files.digest_of(inputs)
    record = files.finished_stage(stage_dir, key)
    if record is not None:
        log.info("%s: taken from %s", name, stage_dir)
    elif run.cache is None:
        return _compute_stage(name, stage_dir, done, inputs, run)
    else:
        with run.cache.compute_once(key):
            record = run.cache.fetch(key, stage_dir)
            if record is None:
                record = _compute_stage(name, stage_dir, done, inputs, run)
                run.cache.store(key, stage_dir)
                return record
        log.info("%s: taken from the cache", name)
        files.finish_stage(stage_dir, record | {"config": asdict(run.config)})
        log_stages([*done, stage_dir], run.config)  # its training curves are in the run that computed it
    if not done and run.config.teacher.factory:
        from compress.methods.restore import restore_float

        restore_float(stage_dir)  # raises where the user's network is not the stage's
    if record["conditions"] != run.evaluation_settings():
        log.info("%s: its files are written and measured anew", name)
        from compress.pipeline.stage_runner import reexport_stage  # imported late: it takes seconds

        record = reexport_stage(name, stage_dir, done, record, run)
        log_stages([*done, stage_dir], run.config)
    return record


def _compute_stage(
    name: str, stage_dir: Path, done: list[Path], inputs: dict[str, Any], run: RunContext
) -> dict[str, Any]:
    from compress.pipeline.stage_runner import (
        compute_and_evaluate,  # imports for seconds what a run that computes nothing does without
    )

    record = compute_and_evaluate(name, stage_dir, done, inputs, run)
    log_stages([*done, stage_dir], run.config)
    return record


def _parent_key(record: dict[str, Any], stage_dir: Path) -> dict[str, str]:
    """Returns what the next stage depends on: the stage's key, and the digests of weights and spec.

    The temperature does not count: it is measured on the file, and its last digits may differ between machines.
    """
    described = files.read_json(stage_dir / files.SPEC)
    described.pop("temperature", None)
    weights = record["files"][files.MODEL]
    return {"key": record["key"], files.MODEL: weights, files.SPEC: files.digest_of(described)}
