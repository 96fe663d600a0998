"""Line charts of pruning: what each group of layers costs at each width, and the accuracy after each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compress.report.svg import Axis, ticks
from compress.utils.metric import MAP50, Metric
from compress.utils.units import three_digits

_DECADES = 4  # powers of ten below the largest distance that the curves show
_FEW = 12  # steps, the table of which is open
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class GroupCurve:
    """The curve of one group of layers that keep the same filters."""

    name: str  # of its first layer
    layers: str
    caption: str
    drawing: Markup


@dataclass(frozen=True)
class Curves:
    """What each group of layers costs at each width, in the network's order."""

    takeaway: str
    legend: str
    groups: list[GroupCurve]


@dataclass(frozen=True)
class Steps:
    """The network after each step; a row has the step, MACs left, filters left and the validation metric."""

    takeaway: str
    drawing: Markup
    label: str  # of the metric
    rows: list[tuple[str, str, str, str]]
    is_open: bool


@dataclass(frozen=True)
class _Plot:
    """A line chart's size in pixels, its scales, the values and texts of their ticks, and the names of its axes."""

    width: int
    height: int
    x: Axis
    y: Axis
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    labels: tuple[str, str] | None = None
    kind: str = "chart"


def group_curves(note: dict[str, Any], metric: Metric) -> Curves | None:
    """Draws a small chart for each group, all with one logarithmic scale of the distance; None without a group."""
    groups = note["groups"]
    if not groups:
        return None
    distances = [distance for group in groups for _, distance in group["curve"] if distance > 0]
    high = math.ceil(math.log10(max(distances, default=1.0)) - 1e-9)
    low = math.floor(math.log10(min(distances, default=0.1)) + 1e-9)
    low = min(max(low, high - _DECADES), high - 1)
    low -= high - low == 3  # so that the second ticks reach the bottom
    unit = "" if metric is MAP50 else f" {note['distance']}"  # the distance of boxes has a part in pixels
    scale = f"in{unit}" if unit else "in classes and boxes"
    shared = " that all charts share" if len(groups) > 1 else ""
    across = "filters that the group has left" if _counted(groups[0]) == "filters" else "rank of the layer"
    return Curves(
        _takeaway(note, unit),
        f"across: {across}; up: distance from the teacher's outputs, {scale}, on a logarithmic "
        f"scale{shared}; a distance below {_decade(low)}{unit} is drawn at the bottom",
        [_group(group, number, unit, (low, high)) for number, group in enumerate(groups)],
    )


def _counted(group: dict[str, Any]) -> str:
    """Returns what the curve of a group counts: "filters" of pruning, or "ranks" of factorization."""
    return "filters" if "filters" in group else "ranks"


def _takeaway(note: dict[str, Any], unit: str) -> str:
    """Returns how the curves were taken, and which group costs the most and the least at about half its filters."""
    groups, what = note["groups"], _counted(note["groups"][0])
    several = "groups of layers" if what == "filters" else "layers"
    alone = f"Each of {len(groups)} {several}" if len(groups) > 1 else groups[0]["layers"][0]
    done = "pruned alone to several widths, refitted," if what == "filters" else "factorized alone at several ranks"
    text = f"{alone} was {done} and compared with the teacher on "
    text += f"{note['images']:,} images" + (f", in {note['seconds']:,.0f} s." if "seconds" in note else ".")
    halves = []
    for group in groups:
        narrower = [(abs(2 * left - group[what]), left, distance) for left, distance in group["curve"]]
        narrower = [point for point in narrower if point[1] < group[what]]
        if narrower:
            _, left, distance = min(narrower)
            halves.append((distance, f"{_figure(distance)}{unit} with {left:,} of {group[what]:,} {what}", group))
    if not halves:
        return text
    (_, most, dear), (_, least, cheap) = (pick(halves, key=lambda half: half[0]) for pick in (max, min))
    if len(halves) == 1:
        return f"{text} At about half its {what}, {dear['layers'][0]} costs {most}."
    return (
        f"{text} At about half its {what}, {dear['layers'][0]} costs the most, {most}; {cheap['layers'][0]} costs the "
        f"least, {least}."
    )


def _group(group: dict[str, Any], number: int, unit: str, decades: tuple[int, int]) -> GroupCurve:
    low, high = decades
    what = _counted(group)
    filters, left = group[what], group["left"]
    x, y = Axis(0.0, filters, 40, 166), Axis(low, high, 82, 10)
    every = 1 if high - low <= 2 else 2
    y_ticks = [(value, _decade(value)) for value in range(low, high + 1, every)]
    plot = _Plot(180, 104, x, y, [(0, "0"), (filters, f"{filters:,}")], y_ticks, kind="chart panel")
    points = sorted(group["curve"])
    curve = [(count, max(low, math.log10(distance)) if distance > 0 else low) for count, distance in points]
    kept = f"all {filters:,} {what}" if left == filters else f"{left:,} of {filters:,} {what}"
    figures = ", ".join(f"{_figure(distance)}{unit} with {count:,}" for count, distance in reversed(points))
    name, layers = group["layers"][0], len(group["layers"])
    words = f"{name}: distance by {what} left", f"{kept} are left; distance: {figures} {what}"
    drawing = _draw(plot, curve, f"{what}-{number}", words, _marked(plot, curve, left, kept))
    caption = f"{kept} · {layers} layers" if layers > 1 else kept
    return GroupCurve(name, ", ".join(group["layers"]), caption, drawing)


def _marked(plot: _Plot, curve: Points, left: float, note: str) -> Markup:
    """Draws the chosen width, and its place on the line where the line reaches so far."""
    at = plot.x.at(left)
    drawn = Markup('<line class="taken" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>').format(
        at, plot.y.end, plot.y.start
    )
    for (x1, y1), (x2, y2) in zip(curve, [*curve[1:], curve[-1]], strict=True):
        if x1 == left or x1 < left < x2:
            height = y1 if x1 == left else y1 + (y2 - y1) * (left - x1) / (x2 - x1)
            drawn += _circle(at, plot.y.at(height), "chosen", note)
    return drawn


def _decade(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else f"10{str(exponent).translate(_SUPERSCRIPT)}"


def _figure(distance: float) -> str:
    if distance == 0 or distance >= 0.001:
        return three_digits(distance) if distance else "0"
    mantissa, exponent = f"{distance:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def step_curve(notes: list[dict[str, Any]], metric: Metric) -> Steps:
    """Draws the validation metric after each step against the MACs that are left."""
    figures = [(100 * note["macs_share"], note[f"val_{metric.key}_percent"]) for note in notes]
    rows = [
        (str(number), f"{share:.1f} %", f"{note['filters_left_percent']:.1f} %", f"{value:.2f} %")
        for number, ((share, value), note) in enumerate(zip(figures, notes, strict=True), 1)
    ]
    told = [f"step {row[0]}: {row[3]} with {row[1]} of the MACs" for row in rows]
    plot = _step_plot([value for _, value in figures], metric)
    kinds = ["plain"] * (len(rows) - 1) + ["chosen"]
    marks = Markup("").join(
        _circle(plot.x.at(share), plot.y.at(value), kind, text)
        for (share, value), kind, text in zip(figures, kinds, told, strict=True)
    )
    title = f"Validation {metric.label} after each step"
    change = figures[-1][1] - figures[0][1]
    return Steps(
        f"The filters went in {len(rows)} steps, each followed by fine-tuning. After the last, {rows[-1][1]} of the "
        f"MACs and {rows[-1][2]} of the filters are left, with {rows[-1][3]} validation {metric.label}, "
        f"{abs(change):.2f} points {'more' if change > 0 else 'less'} than after the first.",
        _draw(plot, sorted(figures), "steps-of-pruning", (title, "; ".join(told)), marks),
        metric.label,
        rows,
        len(rows) <= _FEW,
    )


def _step_plot(percents: Sequence[float], metric: Metric) -> _Plot:
    low, high = min(percents), max(percents)
    room = 0.08 * max(high - low, 1.0)
    x, y = Axis(0.0, 100.0, 46, 440), Axis(max(0.0, low - room), min(100.0, high + room), 262, 40)
    x_ticks, y_ticks = ([(value, f"{value:g}") for value in ticks(axis.low, axis.high)] for axis in (x, y))
    return _Plot(460, 310, x, y, x_ticks, y_ticks, ("MACs left, %", f"validation {metric.label}, %"))


def _draw(plot: _Plot, points: Points, name: str, words: tuple[str, str], marks: Markup) -> Markup:
    """Draws a line with `marks` above it; `words` are the chart's title and what a screen reader reads out."""
    x, y = plot.x, plot.y
    parts = []
    for value, text in plot.y_ticks:
        parts.append(_line((x.start, y.at(value)), (x.end, y.at(value)), "grid"))
        parts.append(_text(x.start - 6, y.at(value) + 4, text, "tick", "end"))
    for value, text in plot.x_ticks:
        parts.append(_line((x.at(value), y.start), (x.at(value), y.start + 4), "axis"))
        parts.append(_text(x.at(value), y.start + 18, text, "tick", "middle"))
    parts.append(_line((x.start, y.start), (x.end, y.start), "axis"))
    if plot.labels:
        parts.append(_text(x.end, plot.height - 8, plot.labels[0], "axis-label", "end"))
        parts.append(_text(0, 16, plot.labels[1], "axis-label", "start"))
    path = "L".join(f"{x.at(at):.1f} {y.at(value):.1f}" for at, value in points)
    parts.append(Markup('<path class="curve" d="M{}"/>').format(path))
    return Markup(
        '<svg class="{0}" viewBox="0 0 {1} {2}" role="img" aria-labelledby="{3}-title {3}-desc">'
        '<title id="{3}-title">{4}</title><desc id="{3}-desc">{5}</desc>{6}</svg>'
    ).format(plot.kind, plot.width, plot.height, name, *words, Markup("").join([*parts, marks]))


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, *start, *end)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _circle(x: float, y: float, kind: str, note: str) -> Markup:
    return Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
        kind, x, y, note
    )
