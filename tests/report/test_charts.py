"""The page's charts hold the figures of the files, and no word covers another or leaves its picture."""

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from compress.report.classification import class_figures
from compress.report.html import sensitivity_page
from compress.report.layer_charts import profile_chart, sensitivity_chart, width_chart
from compress.report.run_files import load_run
from compress.report.svg import Point, place_labels, scales, scatter
from tests.report.tiny_run import NAMES, write_tiny_run

WIDTH, HEIGHT = 460, 310


def stages(figures: list[tuple[float, float, float, float]]) -> list[Point]:
    """(cost, accuracy, low, high) as the points of teacher, prune, distill and quantize."""
    kinds = ("teacher", "plain", "plain", "chosen")
    return [Point(*row, name, f"note of {name}", kind) for row, name, kind in zip(figures, NAMES, kinds, strict=False)]


TOGETHER = stages([(4.3, 93.0, 91.2, 94.4), *[(2.4, 92.5, 90.7, 94.0)] * 2, (2.3, 92.4, 90.6, 93.9)])
APART = stages([(4.3, 100.0, 99.6, 100.0), (3.1, 80.0, 77.4, 82.3), (3.1, 96.0, 94.6, 97.0), (0.9, 95.1, 93.6, 96.3)])


def drawn(points: list[Point]) -> ET.Element:
    return ET.fromstring(scatter(points, "chart-size", "A title", "size", "accuracy"))


def of_class(picture: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in picture.iter() if name in element.get("class", "").split()]


@pytest.mark.parametrize("points", [TOGETHER, APART, TOGETHER[:1]], ids=["together", "apart", "one"])
def test_a_point_a_stage_with_its_interval_and_its_name(points: list[Point]) -> None:
    picture = drawn(points)
    x, y = scales(points)
    marks = of_class(picture, "mark")
    places = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in marks]
    np.testing.assert_allclose(places, [(x.at(p.x), y.at(p.y)) for p in points], atol=0.06)
    assert [mark.get("class").split()[1] for mark in marks] == [point.kind for point in points]
    assert [mark[0].text for mark in marks] == [point.note for point in points]
    bars = [line for line in of_class(picture, "whisker") if line.get("x1") == line.get("x2")]
    ends = [(float(bar.get("y1")), float(bar.get("y2"))) for bar in bars]
    np.testing.assert_allclose(ends, [(y.at(p.low), y.at(p.high)) for p in points], atol=0.06)
    assert [text.text for text in of_class(picture, "label")] == [point.label for point in points]
    assert x.low == 0  # half the cost is half as far


@pytest.mark.parametrize("points", [TOGETHER, APART], ids=["together", "apart"])
def test_the_names_of_points_can_be_read(points: list[Point]) -> None:
    labels = place_labels(points, *scales(points))
    boxes = []
    for label in labels:
        width = 8 * len(label.text)
        left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        boxes.append((left, label.y - 10, left + width, label.y + 3))
    for left, top, right, bottom in boxes:
        assert 0 <= left <= right <= WIDTH
        assert 0 <= top <= bottom <= HEIGHT
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("classes", [2, 10, 15, 16, 40, 41, 100])
def test_a_cell_with_images_is_coloured_and_named(tmp_path: Path, classes: int) -> None:
    """Rows and columns have their names up to 40 classes, and cells their counts up to 15."""
    names = tuple(f"a class with a long name {at}" for at in range(classes))
    run = load_run(write_tiny_run(tmp_path, classes=names))
    labels, predicted = (run.last.predictions[name] for name in ("labels", "deployed_top1"))
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    picture = ET.fromstring(class_figures(run).matrix)
    cells = {cell.find("title").text: cell for cell in picture.iter("g")}
    assert len(cells) == (counts > 0).sum()
    for row, column in np.argwhere(counts):
        told = f"{names[row]} taken for {names[column]}: {counts[row, column]} of {counts[row].sum()} images"
        rect = cells[told].find("rect")
        assert rect.get("class") == ("right" if row == column else "wrong")
        assert 0.05 < float(rect.get("fill-opacity")) < 0.6
    assert len(of_class(picture, "count")) == (len(cells) if classes <= 15 else 0)
    assert len(of_class(picture, "tick")) == (2 * classes if classes <= 40 else 0)
    assert all(len(text.text) <= 14 for text in of_class(picture, "tick"))


def test_more_mistakes_are_darker(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path, stages=("teacher",)))
    labels = np.repeat([0, 1, 2], 100)
    predicted = labels.copy()
    predicted[:19], predicted[19] = 1, 2
    run.last.predictions = {"labels": labels, "deployed_top1": predicted}
    picture = ET.fromstring(class_figures(run).matrix)
    strength = {g.find("title").text: float(g.find("rect").get("fill-opacity")) for g in picture.iter("g")}
    assert strength["cat taken for dog: 19 of 100 images"] > strength["cat taken for cow: 1 of 100 images"] > 0.2
    assert strength["dog taken for dog: 100 of 100 images"] > strength["cat taken for cat: 80 of 100 images"]


@pytest.mark.parametrize("nodes", [1, 20, 66])
def test_a_bar_a_node_the_slowest_first_and_the_rest_is_summed(tmp_path: Path, nodes: int) -> None:
    run = load_run(write_tiny_run(tmp_path))
    times = [0.01 * (1 + 7 * at % nodes) for at in range(nodes)]
    run.last.profile["nodes"] = [
        {"name": f"layer{at}", "operator": "QLinearConv", "ms": ms, "share_percent": 1.0} for at, ms in enumerate(times)
    ]
    bars = profile_chart(run).bars
    slowest = sorted(times, reverse=True)
    assert [bar.length for bar in bars[:20]] == pytest.approx([100 * ms / slowest[0] for ms in slowest[:20]])
    assert len(bars) == min(nodes, 20) + (nodes > 20)
    assert sum(float(bar.value.split(" ms")[0]) for bar in bars) == pytest.approx(sum(times), rel=0.01)
    assert sum(float(bar.value.split(" · ")[1].rstrip(" %")) for bar in bars) == pytest.approx(100, abs=1)
    assert (bars[-1].name == "the other 46 nodes") == (nodes == 66)


def test_a_layer_has_a_bar_before_and_one_after(tmp_path: Path) -> None:
    (bar,) = width_chart(load_run(write_tiny_run(tmp_path))).bars
    assert (bar.name, bar.value, bar.behind, bar.length) == ("conv", "16 → 8", 100, 50)


def sensitivity(layers: int) -> dict:
    """A content of sensitivity.json with every third layer kept in float."""
    rows = [
        {"layer": f"layer{number}.conv", "kl_nats": 0.001 * (number + 1), "kept_float": number % 3 == 0}
        for number in range(layers)
    ]
    accuracies = {"float_top1_percent": 93.0, "int8_top1_percent": 92.04, "chosen_top1_percent": 92.9}
    return {"images": 402, "max_drop_points": 0.1, "int8_kl_nats": 0.0336, "layers": rows} | accuracies


@pytest.mark.parametrize("layers", [1, 8, 57])
def test_a_bar_a_layer_in_the_networks_order(layers: int) -> None:
    table = sensitivity(layers)
    bars = sensitivity_chart(table).bars
    assert [bar.name for bar in bars] == [row["layer"] for row in table["layers"]]
    assert [bar.strong for bar in bars] == [row["kept_float"] for row in table["layers"]]
    assert [bar.length for bar in bars] == pytest.approx([100 * (at + 1) / layers for at in range(layers)])


def test_the_page_of_a_stages_sensitivity_tells_figures_and_units() -> None:
    page = sensitivity_page(sensitivity(8), "04_quantize").replace("\u00a0", " ")
    for told in ("3 of 8", "0.1 points", "402 validation images", "93.00 %", "92.04 %", "92.90 %", "0.0336 nats"):
        assert told in page
    for told in ("04_quantize", "kept in float", "in nats", "layer7.conv"):
        assert told in page
    assert page == sensitivity_page(sensitivity(8), "04_quantize").replace("\u00a0", " ")
    other = {name.replace("top1", "auroc"): value for name, value in sensitivity(8).items()}
    assert page == sensitivity_page(other, "04_quantize").replace("\u00a0", " ")  # another task's metric
    assert "No layer of this network is int8." in sensitivity_page(sensitivity(0), "04_quantize")


@pytest.mark.parametrize(
    ("images", "lost", "words"),
    [
        (100, 1, None),
        (100, 4, None),
        (100, 20, "class cow lost 13.3 points more than the classes on average; chance does not explain it"),
        (5, 2, "class cow lost 26.7 points more than the classes on average; with so few images it may be chance"),
    ],
)
def test_a_class_that_lost_much_more_than_the_others_is_warned_of(
    tmp_path: Path, images: int, lost: int, words: str | None
) -> None:
    run = load_run(write_tiny_run(tmp_path))
    labels = np.repeat([0, 1, 2], [100, 100, images])
    predicted = labels.copy()
    predicted[200 : 200 + lost] = 0
    run.teacher.predictions = {"labels": labels, "deployed_top1": labels}
    run.last.predictions = {"labels": labels, "deployed_top1": predicted}
    takeaway = class_figures(run).loss_takeaway
    assert ("Warning" in takeaway) == (words is not None)
    assert words is None or words in takeaway
