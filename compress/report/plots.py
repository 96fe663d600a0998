"""The page's charts as matplotlib figures, for TensorBoard, which shows them small until one is clicked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from safetensors.numpy import load_file

from compress.report.classification import WITH_COUNTS, WITH_NAMES, confusion, opacities, short_names
from compress.report.layer_charts import SHOWN_NODES, time_text
from compress.report.stage_table import ACCURACY_LABEL, LATENCY_LABEL, byte_scale, size_label
from compress.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, place_labels, scales, ticks
from compress.utils.files import METRICS, PREDICTIONS, PROFILE, SPEC, read_json
from compress.utils.units import threads_text, three_digits

INK, SOFT, GRID, MARK, ACCENT = "#15181c", "#59616b", "#eceef0", "#bcc3cb", "#0a5cad"  # the page's, in light

_DOTS_AN_INCH = 110  # TensorBoard drops pixels to make a picture small: with more of them letters lose strokes
_TEXT = 9  # points
_BAR = 0.6  # of a row's height
_UNITS_AN_INCH = 100  # of the page's charts
_LETTERS = 28  # of a node's name
_SIDES = {"start": "left", "middle": "center", "end": "right"}


def stage_figures(folders: Sequence[Path]) -> dict[str, Figure]:
    """The pictures, by name, of the stage that was measured in the last of `folders`, among those before it."""
    stage = folders[-1]
    metrics = {folder.name.partition("_")[2]: read_json(folder / METRICS) for folder in folders}
    scale, unit = byte_scale(row["size_bytes"] for row in metrics.values())
    classes, found = read_json(stage / SPEC)["classes"], load_file(stage / PREDICTIONS)
    counts = confusion(found["labels"], found["deployed_top1"], len(classes))
    return {
        "accuracy_against_latency": plot_trade_off(_points(metrics, "latency_ms_p50"), LATENCY_LABEL),
        "accuracy_against_size": plot_trade_off(_points(metrics, "size_bytes", scale), size_label(unit)),
        "confusion_matrix": plot_confusion(counts, classes, stage.name),
        "time_by_layer": plot_times(read_json(stage / PROFILE), stage.name),
    }


def plot_trade_off(points: Sequence[Point], x_label: str) -> Figure:
    """Accuracy with its interval (upwards) against a cost (to the right), a named point a stage."""
    x, y = scales(points)
    figure = Figure(figsize=(WIDTH / _UNITS_AN_INCH, HEIGHT / _UNITS_AN_INCH), dpi=_DOTS_AN_INCH)
    place = (LEFT / WIDTH, 1 - BOTTOM / HEIGHT, (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / HEIGHT)
    axes = figure.add_axes(place, xlim=(x.low, x.high), ylim=(y.low, y.high))
    axes.set(xticks=ticks(x.low, x.high), yticks=ticks(y.low, y.high))
    axes.tick_params(labelsize=_TEXT, labelcolor=SOFT, color=MARK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MARK)
    figure.text(0.01, 1 - 18 / HEIGHT, ACCURACY_LABEL, fontsize=_TEXT, color=SOFT)
    figure.text(RIGHT / WIDTH, 1 - (BOTTOM + 41) / HEIGHT, x_label, fontsize=_TEXT, color=SOFT, ha="right")
    for point, label in zip(points, place_labels(points, x, y), strict=True):
        _draw_point(axes, point)
        figure.text(
            label.x / WIDTH, 1 - label.y / HEIGHT, label.text,
            fontsize=_TEXT, ha=_SIDES[label.anchor], color=ACCENT if point.kind == "chosen" else INK,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )  # fmt: skip
    return figure


def plot_confusion(counts: np.ndarray, names: Sequence[str], stage: str) -> Figure:
    """Test images (K, K), a row a true class: grey where the file is right, blue where not, darker for a larger share.

    Cells have their counts, and rows and columns their names, while these can be read.
    """
    size = len(names)
    cell = 0.36 if size <= WITH_COUNTS else 0.2 if size <= WITH_NAMES else 7 / size
    side = max(2.6, cell * size) + 1.6  # inches, with room for names and words
    figure = Figure(figsize=(side, side), dpi=_DOTS_AN_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_colours(counts), interpolation="nearest")
    axes.set_xlabel("predicted", fontsize=_TEXT, color=SOFT)
    axes.set_ylabel("true", fontsize=_TEXT, color=SOFT)
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_color(MARK)
    axes.set(xticks=[], yticks=[])
    if size <= WITH_NAMES:
        _name_cells(axes, short_names(names))
    if size <= WITH_COUNTS:
        for row, column in np.argwhere(counts):
            axes.text(column, row, f"{counts[row, column]}", fontsize=_TEXT, color=INK, ha="center", va="center")
    right = f"{np.trace(counts):,} of {counts.sum():,} test images are right"
    _title(figure, f"Confusion matrix of {stage}/model.onnx\n{right}")
    _legend(figure, {"right": (INK, 0.3), "mistaken": (ACCENT, 0.5)})
    return figure


def plot_times(profile: dict[str, Any], stage: str) -> Figure:
    """Milliseconds of one image a node of profile.json, the slowest first; those after the first 20 are summed."""
    nodes = sorted(profile["nodes"], key=lambda node: -node["ms"])
    total = sum(node["ms"] for node in nodes)
    shown, rest = nodes[:SHOWN_NODES], nodes[SHOWN_NODES:]
    names = [f"{_cut(node['name'])}  {node['operator']}" for node in shown]
    values = [time_text(node["ms"], total) for node in shown]
    if rest:
        names.append(f"the other {len(rest)} nodes, summed, no bar")
        values.append(time_text(sum(node["ms"] for node in rest), total))
    figure, axes = _bar_chart(names, values)
    axes.barh(range(len(shown)), [node["ms"] for node in shown], color=ACCENT, height=_BAR)
    threads = threads_text(profile["threads"])
    what = f"{three_digits(total)} ms of one image, mean of {profile['runs']:,} runs with the profiler on, {threads}"
    _title(figure, f"Where the time goes in {stage}/model.onnx, the slowest node first\n{what}")
    return figure


def plot_widths(widths: dict[str, tuple[int, int]]) -> Figure:
    """Output channels (before, after) a layer, in the network's order."""
    before, after = zip(*widths.values(), strict=True)
    figure, axes = _bar_chart(list(widths), [f"{old:,} → {new:,}" for old, new in widths.values()])
    axes.barh(range(len(widths)), before, color=MARK, height=_BAR)
    axes.barh(range(len(widths)), after, color=ACCENT, height=_BAR)
    left = f"{sum(after):,} of {sum(before):,} output channels are left, {100 * sum(after) / sum(before):.0f} %,"
    _title(figure, f"{left}\nin the {len(widths)} layers that pruning made narrower")
    _legend(figure, {"before": MARK, "after": ACCENT})
    return figure


def _points(metrics: dict[str, dict[str, Any]], cost: str, scale: float = 1.0) -> list[Point]:
    """A point a stage: accuracy against `cost` in units of `scale`; the first is the teacher's, the last is new."""
    points = []
    for at, (name, row) in enumerate(metrics.items()):
        kind = "teacher" if at == 0 else "chosen" if at == len(metrics) - 1 else "plain"
        interval = row["deployed_top1_ci95_percent"]
        points.append(Point(row[cost] / scale, row["deployed_top1_percent"], *interval, name, "", kind))
    return points


def _draw_point(axes: Axes, point: Point) -> None:
    middle, half = (point.low + point.high) / 2, (point.high - point.low) / 2
    axes.errorbar(point.x, middle, half, fmt="none", ecolor=(SOFT, 0.7), elinewidth=0.9, capsize=2.9)
    face, edge, size = {
        "teacher": ("white", SOFT, 7.2), "plain": (SOFT, "white", 7.2), "chosen": (ACCENT, "white", 8.6),
    }[point.kind]  # fmt: skip
    axes.plot(point.x, point.y, "o", color=face, markeredgecolor=edge, markersize=size, clip_on=False, zorder=3)


def _colours(counts: np.ndarray) -> np.ndarray:
    """RGBA (K, K, 4) of a confusion matrix."""
    found = np.zeros((*counts.shape, 4))
    found[..., :3] = to_rgb(ACCENT)
    found[np.diag_indices(len(counts))] = (*to_rgb(INK), 0)
    found[..., 3] = opacities(counts)
    return found


def _name_cells(axes: Axes, names: list[str]) -> None:
    """Names before the rows and above the columns, there upright where they would not fit, and lines between cells."""
    size = len(names)
    upright = size > WITH_COUNTS or max(len(name) for name in names) > 4
    axes.set_xticks(range(size), names, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(range(size), names, parse_math=False)
    axes.tick_params(
        length=0, labelsize=_TEXT, labelcolor=SOFT, top=True, labeltop=True, bottom=False, labelbottom=False
    )
    edges = np.arange(size - 1) + 0.5
    axes.hlines(edges, -0.5, size - 0.5, color="white", linewidth=1)
    axes.vlines(edges, -0.5, size - 0.5, color="white", linewidth=1)


def _bar_chart(names: list[str], values: list[str]) -> tuple[Figure, Axes]:
    """Room for a bar a row, from the top, between its name and its value."""
    figure = Figure(figsize=(6, 0.9 + 0.2 * len(names)), dpi=_DOTS_AN_INCH, layout="constrained")
    axes = figure.add_subplot(ylim=(len(names) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(length=0, labelsize=_TEXT, labelcolor=INK)
    axes.spines[:].set_visible(False)
    for row, value in enumerate(values):
        axes.text(
            1.02, row, value, transform=axes.get_yaxis_transform(), fontsize=_TEXT, color=SOFT, va="center_baseline"
        )
    return figure, axes


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=_TEXT, color=INK)


def _legend(figure: Figure, colours: dict[str, Any]) -> None:
    handles = [Patch(color=colour, label=name, linewidth=0) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=_TEXT)


def _cut(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
