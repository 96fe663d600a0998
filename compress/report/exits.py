"""Shows where images leave a network with exits, how often it is right there, what that saves, and which they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.report.gallery import Picture, address
from compress.report.run_files import RunRecord, StageRecord
from compress.report.stage_table import milliseconds
from compress.report.verdict import interval, percent, signed
from compress.utils.units import count_text

_TINY = 64  # pixels a side: up to here they show as squares


@dataclass(frozen=True)
class EndRow:
    """A row of the table of ends; a dash stands for what an end does not have."""

    name: str
    share: str
    percent: str
    macs: str
    threshold: str
    temperature: str


@dataclass(frozen=True)
class ExitCard:
    """A test image, its class and what the file says of it."""

    picture: Picture
    label: str
    predicted: str
    right: bool
    confidence: str  # of the first exit


@dataclass(frozen=True)
class Exits:
    """The section of the page."""

    takeaway: str
    rows: list[EndRow]
    times: list[tuple[str, str, str, str]]  # of what, mean, median, p95
    images: int  # that were timed
    easy: list[ExitCard]
    hard: list[ExitCard]
    tiny: bool


def exits(run: RunRecord) -> Exits | None:
    """Returns the section on the last stage whose network has exits; None where none has."""
    stage = next((stage for stage in reversed(run.stages) if "exits" in stage.metrics), None)
    if stage is None:
        return None
    found = stage.metrics["exits"]
    easy, hard = (_cards(stage, group) for group in ("easy", "hard"))
    shown = stage.exits or {}
    images = next((shown[name] for name in ("easy_images", "hard_images") if name in shown), None)
    return Exits(
        _takeaway(stage),
        [_row(stage, at) for at in range(len(found["ends"]))],
        [
            _times(f"{stage.name}/model.onnx", stage.metrics, "latency_ms"),
            _times("the same file, no image leaves early", found, "to_the_end_latency_ms"),
            _times("a file of its last end alone", found, "last_end_latency_ms"),
        ],
        found["timed_images"],
        easy,
        hard,
        tiny=images is not None and max(images.shape[1:3]) <= _TINY,
    )


def _takeaway(stage: StageRecord) -> str:
    found, metrics = stage.metrics["exits"], stage.metrics
    early = 100 - found["ends"][-1]["share_percent"]
    own, whole = metrics["latency_ms_mean"], found["last_end_latency_ms_mean"]
    return (
        f"{early:.0f} % of {metrics['images']:,} test images leave before the end. The mean image takes "
        f"{milliseconds(own)}, which is {found['latency_share']:.2f} of the {milliseconds(whole)} of a file of the "
        f"last end alone; it has {count_text(metrics['mean_macs'])} MACs, and one that goes to the end "
        f"{count_text(found['ends'][-1]['macs'])}. Against the last end alone top-1 changes by "
        f"{signed(found['delta_points_to_the_end'])} points (95 % interval "
        f"{interval(*found['delta_ci95_points_to_the_end'])})."
    )


def _row(stage: StageRecord, at: int) -> EndRow:
    found, chosen = stage.metrics["exits"]["ends"][at], stage.record["notes"]["exits"]["ends"][at]
    return EndRow(
        _end_name(found),
        f"{found['share_percent']:.1f} %",
        percent(found["top1_percent"]),
        count_text(found["macs"]),
        _threshold(chosen["threshold"]),
        "–" if chosen["temperature"] is None else f"{chosen['temperature']:.3g}",
    )


def _end_name(found: dict[str, Any]) -> str:
    if "width" in found:
        return f"at width {found['width']:g}"
    return "the end" if found["after"] is None else f"after {found['after']}"


def _threshold(value: float | None) -> str:
    if value is None:
        return "–"
    return "none leaves" if value > 1 else f"{100 * value:.2f} %"


def _times(name: str, figures: dict[str, Any], key: str) -> tuple[str, str, str, str]:
    mean, median, high = (milliseconds(figures[f"{key}_{kind}"]) for kind in ("mean", "p50", "p95"))
    return name, mean, median, high


def _cards(stage: StageRecord, group: str) -> list[ExitCard]:
    """Returns the cards of the "easy" or the "hard" images that the stage kept."""
    kept = stage.exits
    if kept is None or f"{group}_images" not in kept:
        return []
    columns = [kept[f"{group}_{name}"] for name in ("images", "index", "labels", "predicted", "confidence")]
    return [_card(stage.spec["classes"], *values) for values in zip(*columns, strict=True)]


def _card(classes: list[str], image: np.ndarray, index: int, label: int, predicted: int, confidence: float) -> ExitCard:
    picture = Picture(address(image), "image", f"Test image {int(index)}, class {classes[label]}")
    return ExitCard(picture, classes[label], classes[predicted], bool(label == predicted), f"{100 * confidence:.1f} %")
