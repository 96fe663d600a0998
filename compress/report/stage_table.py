"""The figures of each stage: the key figures, the rows of the table and the points of the two charts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compress.report.detection import map_text
from compress.report.energy import estimate_text
from compress.report.run_files import RunRecord, StageRecord
from compress.report.seen_validation import seen_validation
from compress.report.svg import Point, scatter
from compress.report.verdict import interval, percent, short_name, signed, times_smaller, times_text
from compress.utils.latency import headline_latency_ms
from compress.utils.metric import AUROC, MAP50, TOP1, Metric
from compress.utils.units import count_text, size_text, three_digits

_QUIET = 1.25  # on a quiet machine two measurements of one file differ by less than this factor
_BYTE_UNITS = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


@dataclass(frozen=True)
class KeyFigure:
    """One figure of the deployed file next to the teacher's; the lengths are percents of the larger one."""

    name: str
    value: str
    teacher: str
    change: str
    better: str  # "higher" or "lower"
    length: float
    teacher_length: float


@dataclass(frozen=True)
class StageRow:
    """A row of the table of stages."""

    name: str
    percent: str  # the task's metric
    percent_interval: str
    map_percent: str  # at IoUs of 0.5 to 0.95; empty for a task without boxes
    delta: str
    delta_interval: str
    p_value: str
    size: str
    smaller: str
    latency: str
    latency_p95: str
    faster: str
    throughput: str
    macs: str
    energy: str  # an estimate, in mJ; empty in a run of before it
    params: str
    memory: str
    agreement: str


@dataclass(frozen=True)
class Agreement:
    """What "agreement with the teacher" counts."""

    head: str
    share: str


# By the key of the metric.
AGREEMENTS = {
    TOP1.key: Agreement("same class as the teacher", "share of test images"),
    AUROC.key: Agreement("same labels as the teacher", "share of all labels of test images"),
    MAP50.key: Agreement("same objects as the teacher", "share of the objects that either finds"),
}
# By the key of the p-value.
TESTS = {
    TOP1.p_value: "McNemar's test against the teacher on the same images",
    MAP50.p_value: "that of a bootstrap test against the teacher, on the same resamples of the test images",
}


@dataclass(frozen=True)
class TradeOff:
    """A chart with a sentence that sums it up."""

    title: str
    takeaway: str
    drawing: Markup


def key_figures(run: RunRecord) -> list[KeyFigure]:
    """Returns accuracy, size, latency and MACs of the last stage's file; the last two of the mean image with exits."""
    own, theirs = run.last.metrics, run.teacher.metrics
    metric = run.last.metric
    title = f"{metric.name[0].upper()}{metric.name[1:]}"
    delta = f"{signed(run.last.delta)} points" if run.last is not run.teacher else "the teacher itself"
    size, macs = times_smaller(run, run.last), own.get("mean_macs", own["macs"])
    fewer = times_text(theirs["macs"] / macs, "fewer", "more", "as many")
    return [
        _figure(title, f"deployed_{metric.key}_percent", run, percent, delta, "higher"),
        _figure("File size", "size_bytes", run, size_text, times_text(size, "smaller", "larger", "as large"), "lower"),
        _pair(
            "Latency, one image", headline_latency_ms(own), teacher_latency(run), milliseconds,
            times_text(own["speedup_vs_teacher"], "faster", "slower", "as fast"), "lower",
        ),
        _pair("MACs, one image", macs, theirs["macs"], count_text, fewer, "lower"),
    ]  # fmt: skip


def _figure(name: str, key: str, run: RunRecord, text: Any, change: str, better: str) -> KeyFigure:
    return _pair(name, run.last.metrics[key], run.teacher.metrics[key], text, change, better)


def _pair(name: str, own: float, theirs: float, text: Any, change: str, better: str) -> KeyFigure:
    most = max(own, theirs) or 1
    return KeyFigure(name, text(own), text(theirs), change, better, 100 * own / most, 100 * theirs / most)


def teacher_latency(run: RunRecord) -> float:
    """Returns the milliseconds of the teacher's file when timed in turns with the last stage's file.

    The factor "faster" refers to this time.
    """
    return headline_latency_ms(run.last.metrics) * run.last.metrics["speedup_vs_teacher"]


def cautions(run: RunRecord) -> list[str]:
    """Returns reasons to distrust the figures."""
    seen = seen_validation(run.teacher.record, run.teacher.metrics)
    return [caution for caution in (seen, _noisy_machine(run)) if caution]


def kept_epochs(run: RunRecord) -> list[str]:
    """Returns which epoch each training kept, and why; stages without training have no line."""
    kept = {stage.short: stage.record["notes"].get("kept_epoch") for stage in run.stages}
    return [f"{name} kept epoch {found['epoch']}, {found['reason']}." for name, found in kept.items() if found]


def _noisy_machine(run: RunRecord) -> str:
    """Returns a caution where the teacher's file was slower or faster in turns than in its own stage; else no text."""
    alone, in_turns = headline_latency_ms(run.teacher.metrics), teacher_latency(run)
    if max(alone, in_turns) <= _QUIET * min(alone, in_turns):
        return ""
    return (
        f"The machine was not quiet: the teacher's file took {milliseconds(alone)} in its own stage and "
        f"{milliseconds(in_turns)} in turns with {run.last.name}'s. Read the times with care, or measure again."
    )


def milliseconds(value: float) -> str:
    return f"{three_digits(value)} ms"


def stage_rows(run: RunRecord) -> list[StageRow]:
    """Returns a row for each stage, in their order."""
    return [_row(run, stage) for stage in run.stages]


def _row(run: RunRecord, stage: StageRecord) -> StageRow:
    metrics, first = stage.metrics, stage is run.teacher
    p_value, memory = metrics.get(stage.metric.p_value), metrics["peak_memory_bytes"]
    return StageRow(
        name=stage.name,
        percent=f"{stage.percent:.2f}",
        percent_interval=interval(*stage.percent_interval),
        map_percent=map_text(stage),
        delta="–" if first else signed(stage.delta),
        delta_interval="" if first else interval(*stage.delta_interval),
        p_value="–" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
        size=size_text(metrics["size_bytes"]),
        smaller=f"{times_smaller(run, stage):.2f}×",
        latency=three_digits(headline_latency_ms(metrics)),
        latency_p95=three_digits(metrics["latency_ms_p95"]),
        faster=f"{metrics['speedup_vs_teacher']:.2f}×",
        throughput=f"{metrics['throughput_images_per_s']:,.0f}",
        macs=count_text(metrics["macs"]),
        energy=estimate_text(stage),
        params=count_text(metrics["params"]),
        memory="–" if memory is None else size_text(memory),
        agreement="–" if first else percent(metrics["teacher_agreement_percent"]),
    )


def trade_offs(run: RunRecord) -> list[TradeOff]:
    """Charts accuracy against latency and against size, with a point for each stage."""
    own, theirs = run.last.metrics, run.teacher.metrics
    scale, unit = byte_scale(stage.metrics["size_bytes"] for stage in run.stages)
    latency = f"{run.last.short} takes {milliseconds(headline_latency_ms(own))} an image"
    size = f"{run.last.short}'s file takes {size_text(own['size_bytes'])}"
    if len(run.stages) > 1:
        latency += f"; the teacher, in turns with it, {milliseconds(teacher_latency(run))}"
        size += f", the teacher's {size_text(theirs['size_bytes'])}"
    timed = _chart(run, "latency", headline_latency_ms, LATENCY_LABEL)
    weighed = _chart(run, "size", lambda metrics: metrics["size_bytes"] / scale, size_label(unit))
    return [
        TradeOff("Accuracy against latency", f"{latency}.", timed),
        TradeOff("Accuracy against size", f"{size}.", weighed),
    ]


def byte_scale(sizes: Any) -> tuple[int, str]:
    """Returns the unit, as (bytes, name), in which the largest of `sizes` (bytes) has few digits."""
    most = max(sizes)
    name = next((name for name, count in _BYTE_UNITS.items() if most < 1024 * count), "GiB")
    return _BYTE_UNITS[name], name


def _chart(run: RunRecord, name: str, figure: Callable[[dict[str, Any]], float], x_label: str) -> Markup:
    points = [_point(run, stage, figure(stage.metrics)) for stage in run.stages]
    metric = run.last.metric
    title = f"{metric.name[0].upper()}{metric.name[1:]} of each stage's file against its {name}, with 95 % intervals"
    return scatter(points, f"chart-{name}", title, x_label, accuracy_label(metric))


def accuracy_label(metric: Metric) -> str:
    """Returns the label of a chart's vertical axis."""
    return f"{short_name(metric)}, %, with 95 % interval  (up is better)"


LATENCY_LABEL = "latency of one image, ms  (left is better)"


def size_label(unit: str) -> str:
    return f"size of model.onnx, {unit}  (left is better)"


def _point(run: RunRecord, stage: StageRecord, x: float) -> Point:
    kind = "teacher" if stage is run.teacher else "chosen" if stage is run.last else "plain"
    low, high = stage.percent_interval
    return Point(x, stage.percent, low, high, stage.short, describe_stage(stage), kind)


def describe_stage(stage: StageRecord) -> str:
    """Returns accuracy with its interval, latency and size in one line."""
    metrics = stage.metrics
    return (
        f"{stage.short}: {percent(stage.percent)} ({interval(*stage.percent_interval)}), "
        f"{milliseconds(headline_latency_ms(metrics))}, {size_text(metrics['size_bytes'])}"
    )


def unavailable(run: RunRecord) -> list[tuple[list[str], str]]:
    """Returns (figures, cause) for the figures that could not be measured, each cause once."""
    found: dict[str, dict[str, None]] = {}
    for stage in run.stages:
        for name, cause in stage.metrics["unavailable"].items():
            found.setdefault(cause, {})[name] = None
    return [(list(names), cause) for cause, names in found.items()]


def left_out(run: RunRecord) -> list[tuple[str, str, Sequence[str]]]:
    """Returns (stage, reason, layers): the layers that a stage did not change, by reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for stage in run.stages:
        for row in stage.record["left_out"]:
            found.setdefault((stage.name, row["reason"]), []).append(row["layer"])
    return [(stage, reason, layers) for (stage, reason), layers in found.items()]
