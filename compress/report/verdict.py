"""Puts the result of a run into words, and claims no difference that is not significant."""

from typing import Any

from compress.report.run_files import RunRecord, StageRecord
from compress.utils.metric import Metric
from compress.utils.units import threads_text

_LONGEST_NAME = 20  # letters
_SAME = 0.05  # a ratio this near to 1 is called the same


def verdict(run: RunRecord) -> str:
    """Returns a sentence that compares the last stage's file with the teacher's: size, latency and accuracy."""
    if len(run.stages) == 1:
        return (
            f"The teacher's file has {percent(run.last.percent)} {short_name(run.last.metric)} "
            f"(95 % interval {interval(*run.last.percent_interval)}); nothing has been compressed yet."
        )
    smaller = times_text(times_smaller(run, run.last), "smaller", "larger", "as large")
    faster = times_text(run.last.metrics["speedup_vs_teacher"], "faster", "slower", "as fast")
    remarks = [f" {text[0].upper()}{text[1:]}." for text in int8_warnings(run.last.record["notes"])]
    return f"{smaller[0].upper()}{smaller[1:]}, {faster}, {points_text(run.last)}.{''.join(remarks)}"


def int8_warnings(notes: dict[str, Any]) -> list[str]:
    """Returns the warnings of an int8 file: layers that unexpectedly run in float, and how to regain lost accuracy."""
    return [text for text in (notes.get("float_layers"), notes.get("int8_loss")) if text]


def points_text(stage: StageRecord) -> str:
    """Returns the points lost or gained against the teacher, with the interval, and whether that is significant."""
    delta, (low, high) = stage.delta, stage.delta_interval
    word, sign = ("lost", -1) if delta <= 0 else ("gained", 1)
    span = interval(*sorted((sign * low, sign * high)))
    text = f"{sign * delta + 0.0:.2f} points of {short_name(stage.metric)} {word} (95 % interval {span})"
    if low <= 0 <= high:
        return f"{text}: on {stage.metrics['images']:,} test images no difference can be told"
    return text


def short_name(metric: Metric) -> str:
    """Returns the name of a metric for a headline and for a chart's axis: its label where its name is long."""
    return metric.name if len(metric.name) <= _LONGEST_NAME else metric.label


def basis(run: RunRecord) -> str:
    """Returns what the verdict is based on: files, images and machine."""
    metrics = run.last.metrics
    place = metrics["environment"]
    threads = threads_text(place["threads"])
    validation = run.teacher.record.get("validation", {})
    aside = (
        f", beside the {validation['images']:,} of that split that served as validation"
        if validation.get("from") == "test"
        else ""
    )
    files = "its" if len(run.stages) == 1 else f"{run.last.name}'s against {run.teacher.name}'s"
    return (
        f"Measured on the deployable files, {files} model.onnx, in ONNX Runtime {place['versions']['onnxruntime']} on "
        f"{place['cpu']}, {threads}; accuracy on the same {metrics['images']:,} test images{aside}."
    )


def times_smaller(run: RunRecord, stage: StageRecord) -> float:
    return run.teacher.metrics["size_bytes"] / stage.metrics["size_bytes"]


def times_text(ratio: float, better: str, worse: str, same: str) -> str:
    """Returns a ratio to the teacher in words, e.g. "2.3 times faster" or "as fast as the teacher (1.02 times)"."""
    if abs(ratio - 1) < _SAME:
        return f"{same} as the teacher ({ratio:.2f} times)"
    return f"{ratio:.1f} times {better}" if ratio > 1 else f"{1 / ratio:.1f} times {worse}"


def percent(value: float | None) -> str:
    """Formats a figure with two decimals; a dash stands for one that was not measured."""
    return "–" if value is None else f"{value:.2f} %"


def signed(value: float) -> str:
    """Formats a number with two decimals and a typographic minus."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # adding 0.0 removes the sign of a zero


def interval(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"
