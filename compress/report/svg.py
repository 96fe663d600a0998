"""Scatter and line charts as inline SVG. The page's style sets the colours, which serves light and dark mode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 460, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 440, 40, 262  # edges of the plotted area
_LETTER, _LINE = 8.0, 13  # width of a letter and height of a line, in pixels
_LONGEST = 22  # letters in a label

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A run or a stage: its cost `x`, and its accuracy `y` with the interval from `low` to `high`."""

    x: float
    y: float
    low: float
    high: float
    label: str
    note: str  # the tooltip, which screen readers read out
    kind: str = "plain"  # or "teacher", "chosen"; decides the style
    href: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), the first furthest left."""

    points: Sequence[tuple[float, float]]
    kind: str  # "teacher" or "chosen"; decides the style
    note: str  # the tooltip, which screen readers read out


@dataclass(frozen=True)
class Axis:
    """A linear scale from figures to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Label:
    """A point's name: `x` is its "start", "middle" or "end", as `anchor` says, and `y` its baseline, in pixels."""

    text: str
    x: float
    y: float
    anchor: str


def scatter(
    points: Sequence[Point],
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    front: Sequence[Point] = (),
    labelled: bool = True,
) -> Markup:
    """Draws accuracy (vertical, with its interval) against a cost (horizontal, from 0).

    `name` distinguishes this chart from others on the page; `front` is a Pareto front, the cheapest point first.
    """
    x, y = scales(points)
    parts = [_grid(x, y, x_label, y_label)]
    if front:
        parts.append(_front(front, x, y))
    parts += [_whisker(point, x, y) for point in points] + [_mark(point, x, y) for point in points]
    if labelled:
        placed = zip(points, place_labels(points, x, y, _stairs(front, x, y)), strict=True)
        parts += [_link(p, _text(at.x, at.y, at.text, f"label {p.kind}", at.anchor)) for p, at in placed]
    role = "group" if any(point.href for point in points) else "img"
    return _chart(name, role, title, "; ".join(point.note for point in points), parts)


def curves(lines: Sequence[Line], name: str, title: str, x_label: str, y_label: str) -> Markup:
    """Draws lines of percents, the last in front, each down to 0 at its right end; `name` is unique on the page."""
    x, y = Axis(0.0, 100.0, _LEFT, _RIGHT), Axis(0.0, 100.0, _BOTTOM, _TOP)
    parts = [_grid(x, y, x_label, y_label)]
    for line in lines:
        steps = "L".join(f"{x.at(at):.1f} {y.at(value):.1f}" for at, value in line.points)
        if steps:
            parts.append(
                Markup('<path class="curve {}" d="M{}V{}"><title>{}</title></path>').format(
                    line.kind, steps, _BOTTOM, line.note
                )
            )
    return _chart(name, "img", title, "; ".join(line.note for line in lines), parts)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other point dominates in cost and accuracy, the cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y or (point.x, point.y) == (front[-1].x, front[-1].y):
            front.append(point)
    return front


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round values from `low` to `high`, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * index, 10) for index in range(first, last + 1)]


def scales(points: Sequence[Point]) -> tuple[Axis, Axis]:
    """Returns the axis of the cost, from 0, and the axis of the accuracy, around all intervals."""
    low, high = min(point.low for point in points), max(point.high for point in points)
    room = 0.08 * max(high - low, 1.0)
    cost = Axis(0.0, 1.12 * max(point.x for point in points) or 1.0, _LEFT, _RIGHT)
    return cost, Axis(max(0.0, low - room), min(100.0, high + room), _BOTTOM, _TOP)


def place_labels(points: Sequence[Point], x: Axis, y: Axis, lines: Sequence[Box] = ()) -> list[Label]:
    """Places a label next to each point, where it covers least of `lines`, other labels, points and whiskers."""
    taken = list(lines)
    for point in points:
        at, height = x.at(point.x), y.at(point.y)
        taken.append((at - 6, height - 6, at + 6, height + 6))
        taken.append((at - 2, y.at(point.high), at + 2, y.at(point.low)))
    found = []
    for point in points:
        text = point.label if len(point.label) <= _LONGEST else f"{point.label[: _LONGEST - 1]}…"
        places = _places(x.at(point.x), y.at(point.y), _LETTER * len(text))
        _, box = min(places, key=lambda place: place[0] + sum(overlap(place[1], other) for other in taken))
        taken.append(box)
        found.append(_label(box, x.at(point.x), text))
    return found


def overlap(one: Box, other: Box) -> float:
    """Returns the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _chart(name: str, role: str, title: str, described: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="{}" aria-labelledby="{}-title {}-desc">'
        '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>{}</svg>'
    ).format(_WIDTH, _HEIGHT, role, name, name, name, title, name, described, Markup("").join(parts))


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> Markup:
    lines = []
    for value in ticks(y.low, y.high):
        lines.append(_line(_LEFT, y.at(value), _RIGHT, y.at(value), "grid"))
        lines.append(_text(_LEFT - 8, y.at(value) + 4, f"{value:g}", "tick", "end"))
    for value in ticks(x.low, x.high):
        lines.append(_line(x.at(value), _BOTTOM, x.at(value), _BOTTOM + 4, "axis"))
        lines.append(_text(x.at(value), _BOTTOM + 18, f"{value:g}", "tick", "middle"))
    lines.append(_line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"))
    lines.append(_text(0, 16, y_label, "axis-label", "start"))
    lines.append(_text(_RIGHT, _BOTTOM + 40, x_label, "axis-label", "end"))
    return Markup("").join(lines)


def _whisker(point: Point, x: Axis, y: Axis) -> Markup:
    at = x.at(point.x)
    ends = [_line(at - 4, y.at(value), at + 4, y.at(value), "whisker") for value in (point.low, point.high)]
    return _line(at, y.at(point.low), at, y.at(point.high), "whisker") + Markup("").join(ends)


def _mark(point: Point, x: Axis, y: Axis) -> Markup:
    circle = Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
        point.kind, x.at(point.x), y.at(point.y), 6 if point.kind == "chosen" else 5, point.note
    )
    return _link(point, circle)


def _front(front: Sequence[Point], x: Axis, y: Axis) -> Markup:
    """Draws stairs: at each cost, the best accuracy of all runs of that cost or less."""
    path = f"M{x.at(front[0].x):.1f} {_BOTTOM}V{y.at(front[0].y):.1f}"
    path += "".join(f"H{x.at(point.x):.1f}V{y.at(point.y):.1f}" for point in front[1:])
    return Markup('<path class="front" d="{}H{}"/>').format(path, _RIGHT)


def _stairs(front: Sequence[Point], x: Axis, y: Axis) -> list[Box]:
    """Returns the boxes that the line of `_front` covers."""
    boxes: list[Box] = []
    for at, point in enumerate(front):
        left, height = x.at(point.x), y.at(point.y)
        right, top = (x.at(front[at + 1].x), y.at(front[at + 1].y)) if at + 1 < len(front) else (_RIGHT, height)
        boxes += [(left, height - 1, right, height + 1), (right - 1, top, right + 1, height)]
    return boxes


def _label(box: Box, at: float, text: str) -> Label:
    """Returns the label in its box, aligned to the side that faces the point at `at`."""
    edge, anchor = (box[0] + box[2]) / 2, "middle"
    if box[0] > at or box[2] < at:
        edge, anchor = (box[0], "start") if box[0] > at else (box[2], "end")
    return Label(text, edge, box[3] - 3, anchor)


def _places(x: float, y: float, width: float) -> list[tuple[float, Box]]:
    """Returns the boxes around (x, y) that fit into the picture, each with a penalty in pixels for its distance."""
    found: list[tuple[float, Box]] = []
    for cost, gap in ((0, 9), (80, 20), (160, 32)):
        right, left, above, below = x + gap, x - gap - width, y - gap - _LINE, y + gap
        corners = [(right, y - _LINE / 2), (left, y - _LINE / 2), (x - width / 2, above), (x - width / 2, below)]
        corners += [(right, above), (left, above), (right, below), (left, below)]
        found += [(cost, (left, top, left + width, top + _LINE)) for left, top in corners]
    inside = [(c, b) for c, b in found if b[0] >= _LEFT and b[2] <= _WIDTH and b[1] >= 20 and b[3] <= _BOTTOM]
    return inside or found[:1]


def _link(point: Point, drawn: Markup) -> Markup:
    if not point.href:
        return drawn
    return Markup('<a href="{}" aria-label="{}">{}</a>').format(point.href, f"Report of run {point.label}", drawn)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    start = Markup(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">')
    return start + escape(text) + Markup("</text>")
