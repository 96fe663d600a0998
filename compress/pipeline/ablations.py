"""Plainer ways to a network of the same shape on the same budget: what each step of a run really brought."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.config.schema import Config
from compress.models.artifact import read_tensors
from compress.pipeline.run import run_pipeline
from compress.utils.errors import UserError
from compress.utils.files import METRICS, PREDICTIONS, read_json

log = logging.getLogger("compress")


@dataclass
class _Control:
    """`change` makes the control's config of the run's; `unfit` says why it would tell nothing, or is empty."""

    what: str
    change: Callable[[Config], Config]
    unfit: Callable[[Config], str]


def run_controls(config: Config, folder: Path) -> dict[str, Any]:
    """controls.json: the last file of each control against the last of the run in `folder`, on the same test images.

    Each is a run of its own in `folder`/controls; the stages that are the same come from the cache.
    """
    unfit = _unfit(config)
    rows = []
    for name, control in _CONTROLS.items():
        if unfit[name]:
            log.info("control %s: left out, %s", name, unfit[name])
            continue
        log.info("control %s: %s", name, control.what)
        place = folder / "controls" / name
        changed = control.change(config)
        run_pipeline(changed, place)
        rows.append({"name": name, "what": control.what} | _compared(_last(changed, place), _last(config, folder)))
    left_out = [{"control": name, "reason": reason} for name, reason in unfit.items() if reason]
    return {"budget_epochs": _budget(config), "controls": rows, "left_out": left_out}


def check_controls(config: Config) -> None:
    """Raises UserError where controls are asked for and none would tell anything."""
    unfit = _unfit(config)
    if config.controls and all(unfit.values()):
        raise UserError(
            f"controls=true with stages=[{','.join(config.stages)}]",
            f"a run that a control can stand against ({'; '.join(f'{name}: {why}' for name, why in unfit.items())})",
            "set controls=false, or prune or distill something",
        )


def _unfit(config: Config) -> dict[str, str]:
    """Of each control why it would tell nothing; empty for one that does."""
    return {name: control.unfit(config) for name, control in _CONTROLS.items()}


def _last(config: Config, folder: Path) -> Path:
    return folder / f"{len(config.stages):02d}_{config.stages[-1]}"


def _compared(stage: Path, against: Path) -> dict[str, Any]:
    """The control's accuracy, and the points that it is ahead."""
    metrics = read_json(stage / METRICS)
    from compress.evaluation.inference import against_teacher  # ONNX Runtime and SciPy take seconds

    paired = against_teacher(read_tensors(stage / PREDICTIONS), read_tensors(against / PREDICTIONS))
    return {
        "against": against.name,
        "deployed_top1_percent": metrics["deployed_top1_percent"],
        "deployed_top1_ci95_percent": metrics["deployed_top1_ci95_percent"],
        "delta_points": paired["top1_delta_points"],
        "delta_ci95_points": paired["top1_delta_ci95_points"],
    }


def _budget(config: Config) -> int:
    """Epochs behind the teacher."""
    aware = config.quantize.epochs if "quantize" in config.stages and config.quantize.mode == "qat" else 0
    return _float_epochs(config) + aware


def _float_epochs(config: Config) -> int:
    """Epochs between the teacher and int8."""
    return sum(getattr(config, name).epochs for name in ("prune", "distill") if name in config.stages)


def _random_pruned(config: Config) -> Config:
    return replace(config, prune=replace(config.prune, importance="random"))


def _labels_only(config: Config) -> Config:
    distill = replace(config.distill, alpha=0.0, hint_layers=[])
    return replace(config, distill=distill, quantize=replace(config.quantize, alpha=0.0))


def _from_scratch(config: Config) -> Config:
    """All float epochs in one training from new weights, at the rate that the teacher is trained at."""
    prune = replace(config.prune, reinitialize=True, epochs=_float_epochs(config), lr=config.teacher.lr)
    stages = [name for name in config.stages if name != "distill"]
    return replace(_labels_only(config), stages=stages, prune=prune)


def _no_pruned_shape(config: Config) -> str:
    if "prune" not in config.stages or config.prune.ratio == 0:
        return "nothing is pruned"
    if "distill" in config.stages and config.distill.student:
        return "distill.student takes the place of the pruned network"
    return ""


def _no_choice(config: Config) -> str:
    return "prune.importance is random" if config.prune.importance == "random" else _no_pruned_shape(config)


def _no_training(config: Config) -> str:
    return _no_pruned_shape(config) or ("" if _float_epochs(config) else "there is no epoch before int8")


def _no_teaching(config: Config) -> str:
    distill, quantize = config.distill, config.quantize
    taught = "distill" in config.stages and distill.epochs and (distill.alpha or distill.hint_layers)
    aware = "quantize" in config.stages and quantize.mode == "qat" and quantize.epochs and quantize.alpha
    return "" if taught or aware else "nothing is learned from the teacher"


_CONTROLS = {
    "random_pruned": _Control("filters removed at random, all else the same", _random_pruned, _no_choice),
    "finetuned_without_distillation": _Control(
        "the same network, trained as long on the labels alone", _labels_only, _no_teaching
    ),
    "dense_from_scratch": _Control(
        "a network of the pruned shape, trained from new weights on the labels alone", _from_scratch, _no_training
    ),
}
