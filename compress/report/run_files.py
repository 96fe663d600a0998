"""Reads the folder of a run: its figures, and which files are missing or have changed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load

from compress.utils.errors import UserError
from compress.utils.files import (
    CONTROLS,
    EXAMPLES,
    EXITS,
    METRICS,
    PREDICTIONS,
    PROFILE,
    REPEATS,
    SENSITIVITY,
    SPEC,
    STAGE,
    STATUS,
    digest_of_file,
    inside,
)
from compress.utils.metric import MAP50, Metric, metric_of

SUMMARY, LOG = "summary.json", "compress.log"
_TENSORS = (PREDICTIONS, EXAMPLES, EXITS)


@dataclass
class StageRecord:
    """A finished stage; None stands for a file that it did not write."""

    folder: Path
    metrics: dict[str, Any]
    record: dict[str, Any]  # stage.json
    spec: dict[str, Any]  # model.json
    predictions: dict[str, np.ndarray] | None
    profile: dict[str, Any] | None
    examples: dict[str, np.ndarray] | None
    exits: dict[str, np.ndarray] | None
    sensitivity: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The name of its folder, e.g. 04_quantize."""
        return self.folder.name

    @property
    def short(self) -> str:
        """Its name without the number, e.g. quantize."""
        return self.name.partition("_")[2]

    @property
    def metric(self) -> Metric:
        """The figure by which its file is compared."""
        return metric_of(self.metrics)

    @property
    def percent(self) -> float:
        """The metric of its file on the test images, in percent."""
        return self.metric.percent(self.metrics)

    @property
    def percent_interval(self) -> tuple[float, float]:
        """The 95 % interval of `percent`."""
        return self.metric.interval(self.metrics)

    @property
    def delta(self) -> float:
        """The difference to the teacher's file in percentage points."""
        return self.metric.delta(self.metrics)

    @property
    def delta_interval(self) -> tuple[float, float]:
        """The 95 % interval of `delta`."""
        return self.metric.delta_interval(self.metrics)


@dataclass
class RunRecord:
    """A run with at least one finished stage."""

    folder: Path
    stages: list[StageRecord]
    unfinished: list[str]  # stages that the config asks for and that are missing
    remarks: list[str]  # on files that are missing, or changed since they were written
    overrides: list[str] | None  # arguments of `python -m compress`; None where the run was started otherwise
    repeats: dict[str, Any] | None
    controls: dict[str, Any] | None
    absent: list[str] = field(default_factory=list)  # what the page cannot show, and why

    @property
    def teacher(self) -> StageRecord:
        return self.stages[0]

    @property
    def last(self) -> StageRecord:
        """The stage whose file is deployed."""
        return self.stages[-1]

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the last stage that finished."""
        return self.last.record["config"]


def load_run(folder: Path) -> RunRecord:
    """Reads the run in `folder`. Raises UserError where no stage is finished, or a file cannot be read."""
    stages = [_load_stage(path) for path in stage_folders(folder)]
    if not stages:
        raise UserError(
            f"{folder} without a finished stage",
            f"a run's folder, with 01_teacher/{STAGE} in it",
            "name another folder, or start the run again with hydra.run.dir set to this one",
        )
    expected = [f"{number:02d}_{name}" for number, name in enumerate(stages[-1].record["config"]["stages"], 1)]
    overrides = folder / ".hydra" / "overrides.yaml"
    run = RunRecord(
        folder=folder,
        stages=stages,
        unfinished=[name for name in expected if name not in {stage.name for stage in stages}],
        remarks=[remark for stage in stages for remark in _changes(stage)],
        overrides=_read_yaml(overrides) if overrides.is_file() else None,
        repeats=_read_json(folder / REPEATS) if (folder / REPEATS).is_file() else None,
        controls=_read_json(folder / CONTROLS) if (folder / CONTROLS).is_file() else None,
    )
    run.absent = _absent(run)
    return run


def is_run(folder: Path) -> bool:
    """Whether a run, finished or not, was started in exactly this folder."""
    return any((folder / name).is_file() for name in (SUMMARY, LOG)) or any(folder.glob(f"[0-9][0-9]_*/{STAGE}"))


def failure(folder: Path) -> str:
    """Returns why a run ended early: the error of its status.json, or a general remark without one."""
    status = _read_json(folder / STATUS) if (folder / STATUS).is_file() else {}
    return status.get("error", "it ended without a word: it was killed, or still runs")


def stage_folders(folder: Path) -> list[Path]:
    """Returns the folders of the finished stages: those in the summary, or without a summary all that exist."""
    summary = folder / SUMMARY
    if summary.is_file():
        return [inside(folder, row["stage"]) for row in _read_json(summary)["stages"]]
    return sorted(path.parent for path in folder.glob(f"[0-9][0-9]_*/{STAGE}"))


def _load_stage(folder: Path) -> StageRecord:
    for name in (STAGE, METRICS, SPEC):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} without {name}",
                "a finished stage",
                "run it again with hydra.run.dir set to its run's folder",
            )
    tensors = {name: _read_tensors(folder / name) for name in _TENSORS if (folder / name).is_file()}
    tables = {name: _read_json(folder / name) for name in (PROFILE, SENSITIVITY) if (folder / name).is_file()}
    return StageRecord(
        folder=folder,
        metrics=_read_json(folder / METRICS),
        record=_read_json(folder / STAGE),
        spec=_read_json(folder / SPEC),
        predictions=tensors.get(PREDICTIONS),
        profile=tables.get(PROFILE),
        examples=tensors.get(EXAMPLES),
        exits=tensors.get(EXITS),
        sensitivity=tables.get(SENSITIVITY),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # both JSON and UTF-8 raise it
        raise _damaged(path, error) from error


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}, which cannot be read: {error}",
        "the file as it was written",
        "remove its stage's folder and run again",
    )


def _changes(stage: StageRecord) -> list[str]:
    """Returns remarks on files whose digest differs from stage.json, and on missing files."""
    found = []
    for name, digest in stage.record["files"].items():
        path = inside(stage.folder, name)
        if not path.is_file():
            found.append(f"{stage.name}/{name} is missing.")
        elif digest_of_file(path) != digest:
            found.append(f"{stage.name}/{name} is not the file that the stage wrote: it was changed since.")
    return found


def _absent(run: RunRecord) -> list[str]:
    """Returns a line for each part of the page for which the run has no file."""
    last, lines = run.last, []
    boxes = last.metric is MAP50
    if last.predictions is None:
        part = "Precision and recall, and lost objects" if boxes else "Confusion matrix and classes"
        lines.append(f"{part}: {last.name} has no {PREDICTIONS}.")
    if last.profile is None:
        lines.append(f"Where the time goes: {last.name} has no {PROFILE}.")
    if last.examples is None:
        lines.append(f"Images{' with boxes' if boxes else ' and heatmaps'}: {last.name} has no {EXAMPLES}.")
    elif "heatmap" not in last.examples and not boxes:
        lines.append("Heatmaps: the network has no convolution before a global pooling, which Grad-CAM needs.")
    if "exits" in last.metrics and last.exits is None:
        lines.append(f"Easy and hard images: {last.name} has no {EXITS}.")
    if not last.spec["widths"]:
        lines.append("Widths: no layer was pruned.")
    if last.sensitivity is None:
        lines.append("Sensitivity of the layers: it is measured where quantize.max_drop_points is set.")
    if run.repeats is None:
        lines.append("Spread over seeds: it is taken where repeat.seeds names some.")
    if run.controls is None:
        lines.append("Controls of the same budget: they are run where controls=true.")
    return lines
