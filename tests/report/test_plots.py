"""The pictures of TensorBoard hold the figures of the files, and no word covers another or leaves the picture."""

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from compress.report.plots import (
    ACCENT,
    INK,
    MARK,
    plot_confusion,
    plot_times,
    plot_trade_off,
    plot_widths,
    stage_figures,
)  # fmt: skip
from compress.report.svg import Point
from compress.utils.files import read_json
from tests.report.tiny_run import IMAGES, NAMES, write_tiny_run


def only_axes(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def texts(figure: Figure) -> list[Text]:
    """All that is written, as it lies after drawing."""
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def said(figure: Figure) -> list[str]:
    """The lines of all that is written but an axis's ticks."""
    return [line for text in figure.findobj(Text) for line in text.get_text().split("\n")]


def overlapping(found: Iterable[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent()) for text in found]
    return [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]


def assert_inside(figure: Figure, found: Iterable[Text]) -> None:
    """Nothing is cut off at the picture's edges."""
    for text in found:
        box = text.get_window_extent()
        assert figure.bbox.contains(box.x0, box.y0), text
        assert figure.bbox.contains(box.x1, box.y1), text


def intervals(axes: Axes) -> list[tuple[float, float, float]]:
    """(x, low, high) of each error bar."""
    bars = [item for item in axes.containers if isinstance(item, ErrorbarContainer)]
    return [(line[0][0], line[0][1], line[1][1]) for bar in bars for line in bar.lines[2][0].get_segments()]


def stages(figures: Sequence[tuple[float, float, float, float]]) -> list[Point]:
    """(cost, accuracy, low, high) as the points of teacher, prune, distill and quantize."""
    kinds = ("teacher", "plain", "plain", "chosen")
    return [Point(*row, name, "", kind) for row, name, kind in zip(figures, NAMES, kinds, strict=True)]


TOGETHER = stages([(4.3, 93.0, 91.2, 94.4), *[(2.4, 92.5, 90.7, 94.0)] * 2, (2.3, 92.4, 90.6, 93.9)])
APART = stages([(4.3, 100.0, 99.6, 100.0), (3.1, 80.0, 77.4, 82.3), (3.1, 96.0, 94.6, 97.0), (0.9, 95.1, 93.6, 96.3)])


@pytest.mark.parametrize("points", [TOGETHER, APART, TOGETHER[:1]], ids=["together", "apart", "one"])
def test_a_point_a_stage_with_its_interval(points: list[Point]) -> None:
    figure = plot_trade_off(points, "latency, ms")
    axes = only_axes(figure)
    wanted = [(point.x, point.low, point.high) for point in points]
    np.testing.assert_allclose(intervals(axes), wanted)
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(p.x, p.y) for p in points]
    low, high = axes.get_ylim()
    assert all(low <= point.low <= point.high <= high for point in points)
    assert axes.get_xlim()[0] == 0
    assert {point.label for point in points} <= set(said(figure))


@pytest.mark.parametrize("points", [TOGETHER, APART], ids=["together", "apart"])
def test_the_names_of_points_can_be_read(points: list[Point]) -> None:
    figure = plot_trade_off(points, "latency of one image, median, ms  (left is better)")
    found = texts(figure)
    assert overlapping(found) == []
    assert_inside(figure, found)


def confused(classes: int) -> np.ndarray:
    """Images (K, K): 90 of each class are right, and some are taken for the next class."""
    counts = 90 * np.eye(classes, dtype=int)
    counts[np.arange(classes), (np.arange(classes) + 1) % classes] = 10 * (np.arange(classes) % 3)
    return counts


@pytest.mark.parametrize("classes", [2, 10, 15])
def test_a_cell_with_images_is_coloured_and_counted(classes: int) -> None:
    counts = confused(classes)
    figure = plot_confusion(counts, [f"class {at}" for at in range(classes)], "04_quantize")
    axes = only_axes(figure)
    cells = np.asarray(axes.images[0].get_array())
    assert cells.shape == (classes, classes, 4)
    np.testing.assert_array_equal(cells[..., 3] > 0, counts > 0)
    for row, column in np.argwhere(counts):
        assert to_hex(cells[row, column, :3]) == (INK if row == column else ACCENT)
    found = np.zeros_like(counts)
    for text in axes.texts:
        column, row = text.get_position()
        found[row, column] = int(text.get_text())
    np.testing.assert_array_equal(found, counts)
    assert f"{np.trace(counts):,} of {counts.sum():,} test images are right" in said(figure)
    figure.draw_without_rendering()
    assert overlapping(axes.texts) == []


def test_more_mistakes_are_darker() -> None:
    counts = np.array([[80, 19, 1], [0, 100, 0], [0, 0, 100]])
    cells = np.asarray(only_axes(plot_confusion(counts, ["a", "b", "c"], "01_teacher")).images[0].get_array())
    assert cells[0, 1, 3] > cells[0, 2, 3] > 0.2
    assert cells[1, 1, 3] > cells[0, 0, 3]


@pytest.mark.parametrize("classes", [2, 10, 15, 16, 40])
@pytest.mark.parametrize("name", ["{}", "a class with a long name {}"], ids=["short", "long"])
def test_classes_are_named_where_the_names_fit(classes: int, name: str) -> None:
    figure = plot_confusion(confused(classes), [name.format(at) for at in range(classes)], "04_quantize")
    axes = only_axes(figure)
    assert_inside(figure, texts(figure))
    columns, rows = axes.get_xticklabels(), axes.get_yticklabels()
    assert [text.get_text()[:14] for text in columns] == [text.get_text()[:14] for text in rows]
    assert len(rows) == classes
    assert overlapping(columns) == overlapping(rows) == []


def test_the_pixels_of_a_class_are_still_told_apart_where_its_name_is_not_shown() -> None:
    figure = plot_confusion(confused(100), [f"class {at}" for at in range(100)], "04_quantize")
    axes = only_axes(figure)
    assert not axes.get_xticklabels()
    assert not axes.texts
    figure.draw_without_rendering()
    assert axes.get_window_extent().width / 100 > 5


def test_a_name_is_shown_as_it_is_and_never_as_a_formula() -> None:
    figure = plot_confusion(confused(2), [r"$\nothing$", "a_b^c$"], "04_quantize")
    assert {r"$\nothing$", "a_b^c$"} <= {text.get_text() for text in texts(figure)}


def profiled(nodes: int) -> dict:
    """A content of profile.json, in no order of time."""
    times = [0.01 * (1 + 7 * at % nodes) for at in range(nodes)]
    rows = [
        {"name": f"node_conv2d_{at}_with_a_long_name_{at}", "operator": "QLinearConv", "ms": ms, "share_percent": 1.0}
        for at, ms in enumerate(times)
    ]
    return {"runtime": "onnxruntime", "version": "1.31", "threads": 1, "runs": 200, "nodes": rows}


@pytest.mark.parametrize("nodes", [1, 20, 66])
def test_a_bar_a_node_the_slowest_first_and_the_rest_is_summed(nodes: int) -> None:
    profile = profiled(nodes)
    figure = plot_times(profile, "04_quantize")
    axes = only_axes(figure)
    times = sorted((node["ms"] for node in profile["nodes"]), reverse=True)
    assert [bar.get_width() for bar in axes.patches] == times[:20]
    low, high = axes.get_ylim()
    assert low > high  # the slowest is at the top
    values = [text.get_text() for text in axes.texts]
    assert len(values) == len(axes.get_yticklabels()) == min(nodes, 20) + (nodes > 20)
    assert sum(float(value.split(" ms")[0]) for value in values) == pytest.approx(sum(times), rel=0.01)
    assert sum(float(value.split(" · ")[1].rstrip(" %")) for value in values) == pytest.approx(100, abs=1)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert ("the other 46 nodes, summed, no bar" in names) == (nodes == 66)
    found = texts(figure)
    assert overlapping(found) == []
    assert_inside(figure, found)


@pytest.mark.parametrize("layers", [1, 40])
def test_a_layer_has_a_bar_before_and_one_after(layers: int) -> None:
    widths = {f"features.{at}.conv.0.0": (16 * (at + 1), 16 * (at + 1) - 8) for at in range(layers)}
    figure = plot_widths(widths)
    axes = only_axes(figure)
    bars = {
        colour: [b.get_width() for b in axes.patches if to_hex(b.get_facecolor()) == colour]
        for colour in (MARK, ACCENT)
    }
    assert list(zip(bars[MARK], bars[ACCENT], strict=True)) == list(widths.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(widths)
    assert [text.get_text() for text in axes.texts] == [f"{old:,} → {new:,}" for old, new in widths.values()]
    found = texts(figure)
    assert_inside(figure, found)
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(rows))


def test_a_stage_is_drawn_from_its_files_among_those_before_it(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path)
    folders = [folder / f"{at:02d}_{name}" for at, name in enumerate(NAMES[:3], 1)]
    figures = stage_figures(folders)
    metrics = [read_json(path / "metrics.json") for path in folders]
    for name, key, scale in (("latency", "latency_ms_p50", 1), ("size", "size_bytes", 1024)):
        figure = figures[f"accuracy_against_{name}"]
        wanted = [(row[key] / scale, *row["deployed_top1_ci95_percent"]) for row in metrics]
        np.testing.assert_allclose(intervals(only_axes(figure)), wanted)
        assert {"teacher", "prune", "distill"} <= set(said(figure))
    assert "size of model.onnx, KiB  (left is better)" in said(figures["accuracy_against_size"])
    assert f"{IMAGES - 3} of {IMAGES} test images are right" in said(figures["confusion_matrix"])
    labels = only_axes(figures["confusion_matrix"]).get_xticklabels()
    assert [label.get_text() for label in labels] == ["cat", "dog", "cow"]
    assert len(only_axes(figures["time_by_layer"]).patches) == 20
    for name in ("confusion_matrix", "time_by_layer"):
        assert any("03_distill/model.onnx" in line for line in said(figures[name]))
