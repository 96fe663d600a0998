"""Ablations: plainer ways to a network as small on the same budget, to measure what each step contributed."""

import logging
from pathlib import Path
from typing import Any

from compress.config.schema import Config
from compress.models.artifact import read_tensors
from compress.pipeline.run import run_pipeline
from compress.stages.ablations import ABLATIONS, budget_epochs
from compress.utils.errors import UserError
from compress.utils.files import METRICS, PREDICTIONS, SPEC, read_json

log = logging.getLogger("compress")


def run_ablations(config: Config, folder: Path) -> dict[str, Any]:
    """Runs the ablations into `folder`/controls and returns the content of controls.json.

    It compares the last file of each ablation with the last file of the run in `folder`, on the same test images.
    Stages that are the same come from the cache.
    """
    unfit = _unfit(config)
    rows = []
    for name, control in ABLATIONS.items():
        if unfit[name]:
            log.info("control %s: left out, %s", name, unfit[name])
            continue
        log.info("control %s: %s", name, control.what)
        control_dir = folder / "controls" / name
        control_config = control.change(config)
        run_pipeline(control_config, control_dir)
        rows.append(
            {"name": name, "what": control.what}
            | _compared(_last_stage_dir(control_config, control_dir), _last_stage_dir(config, folder))
        )
    left_out = [{"control": name, "reason": reason} for name, reason in unfit.items() if reason]
    return {"budget_epochs": budget_epochs(config), "controls": rows, "left_out": left_out}


def check_ablations(config: Config) -> None:
    """Raises UserError where ablations are asked for and none would be informative."""
    unfit = _unfit(config)
    if config.controls and all(unfit.values()):
        raise UserError(
            f"controls=true with stages=[{','.join(config.stages)}]",
            f"a run that a control can stand against ({'; '.join(f'{name}: {why}' for name, why in unfit.items())})",
            "set controls=false, or prune, factorize or distill something",
        )


def _unfit(config: Config) -> dict[str, str]:
    """Returns for each ablation why it would not be informative; an empty text where it is."""
    return {name: control.unfit(config) for name, control in ABLATIONS.items()}


def _last_stage_dir(config: Config, folder: Path) -> Path:
    return folder / f"{len(config.stages):02d}_{config.stages[-1]}"


def _compared(stage_dir: Path, reference_dir: Path) -> dict[str, Any]:
    """Returns the ablation's accuracy, and its lead over the reference in percentage points."""
    metrics = read_json(stage_dir / METRICS)
    from compress.tasks import TASKS  # SciPy takes seconds

    task = TASKS[read_json(stage_dir / SPEC)["task"]]
    paired = task.compare(read_tensors(stage_dir / PREDICTIONS), read_tensors(reference_dir / PREDICTIONS))
    figures = (f"deployed_{task.metric.key}_percent", f"deployed_{task.metric.key}_ci95_percent")
    return {
        "against": reference_dir.name,
        **{name: metrics[name] for name in figures},
        "delta_points": paired[f"{task.metric.key}_delta_points"],
        "delta_ci95_points": paired[f"{task.metric.key}_delta_ci95_points"],
    }
