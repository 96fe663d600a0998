"""Draws a line with marks as inline SVG, between axes whose ticks are given."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compress.report.svg import Axis

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """A line chart's size in pixels, its scales, the values and texts of their ticks, and the names of its axes."""

    width: int
    height: int
    x: Axis
    y: Axis
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    labels: tuple[str, str] | None = None
    kind: str = "chart"


def draw(plot: Plot, points: Points, name: str, words: tuple[str, str], marks: Markup) -> Markup:
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


def circle(x: float, y: float, kind: str, note: str) -> Markup:
    """Returns a mark at a place in pixels; `kind` decides its style, and `note` is its tooltip."""
    return Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
        kind, x, y, note
    )
