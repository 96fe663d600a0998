"""The line charts of pruning: a chart for each group on one scale, the width that was taken, and a line of steps."""

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from compress.report.pruning_curves import group_curves, step_curve
from compress.utils.metric import AUROC, MAP50, TOP1
from tests.report.pruning_notes import CURVE, STEPS, sensitivity


def of_class(picture: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in picture.iter() if name in element.get("class", "").split()]


@pytest.mark.parametrize("groups", [1, 2, 60])
def test_each_group_has_a_chart_with_its_width(groups: int) -> None:
    found = group_curves(sensitivity(groups), TOP1)
    assert [group.name for group in found.groups] == [f"layer{at}.conv" for at in range(groups)]
    pictures = [ET.fromstring(group.drawing) for group in found.groups]
    assert len({picture.find("title").get("id") for picture in pictures}) == groups
    for picture, group in zip(pictures, found.groups, strict=True):
        assert group.caption == "8 of 16 filters · 2 layers"
        (path,), (line,), (circle,) = (of_class(picture, name) for name in ("curve", "taken", "mark"))
        places = np.array([pair.split() for pair in path.get("d")[1:].split("L")], float)
        assert len(places) == len(CURVE)
        assert (np.diff(places[:, 0]) > 0).all()  # from few filters to all
        assert (np.diff(places[:, 1]) > 0).all()  # the distance falls, and SVG's y points down
        assert [float(circle.get("cx")), float(circle.get("cy"))] == pytest.approx(places[1])
        assert float(line.get("x1")) == float(line.get("x2")) == pytest.approx(places[1][0])
        assert "0.100 nats with 8" in picture.find("desc").text


def test_distances_are_on_one_logarithmic_scale() -> None:
    """Ten times the distance is as far up in each chart; 10,000 times less than the largest is at the bottom."""
    note = sensitivity(2)
    note["groups"][1]["curve"] = [[16, 0.0], [12, 1e-9], [8, 0.01], [4, 0.1]]
    found = group_curves(note, TOP1)
    heights = []
    for group in found.groups:
        path = of_class(ET.fromstring(group.drawing), "curve")[0].get("d")
        heights.append([float(pair.split()[1]) for pair in path[1:].split("L")])
    (one, tenth, thousandth, zero), (low_tenth, hundredth, tiny, other_zero) = heights
    assert tenth == low_tenth
    assert hundredth - low_tenth == pytest.approx(tenth - one, abs=0.11)
    assert thousandth - tenth == pytest.approx(2 * (tenth - one), abs=0.11)
    assert tiny == zero == other_zero
    assert "a distance below 10⁻⁴ nats is drawn at the bottom" in found.legend


def test_the_most_and_the_least_sensitive_group_are_named_at_half_their_filters() -> None:
    note = sensitivity(3)
    note["groups"][1]["curve"] = [[16, 0.0], [9, 0.00002], [4, 5.0]]
    note["groups"][2]["curve"] = [[16, 0.0], [7, 0.4]]
    takeaway = group_curves(note, TOP1).takeaway
    assert "Each of 3 groups of layers was pruned alone" in takeaway
    assert "on 256 images, in 95 s." in takeaway
    assert "layer2.conv costs the most, 0.400 nats with 7 of 16 filters" in takeaway
    assert "layer1.conv costs the least, 2.00 × 10⁻⁵ nats with 9 of 16 filters" in takeaway


def test_one_group_is_not_compared() -> None:
    takeaway = group_curves(sensitivity(1), TOP1).takeaway
    assert takeaway.startswith("layer0.conv was pruned alone")
    assert takeaway.endswith("At about half its filters, layer0.conv costs 0.100 nats with 8 of 16 filters.")


@pytest.mark.parametrize("left", [15, 16, 2])
def test_a_width_between_measured_ones_is_marked_on_the_line(left: int) -> None:
    """Below the narrowest that was measured, the width is marked but no distance is."""
    note = sensitivity(1)
    note["groups"][0]["left"] = left
    (group,) = group_curves(note, TOP1).groups
    picture = ET.fromstring(group.drawing)
    path = of_class(picture, "curve")[0].get("d")
    places = np.array([pair.split() for pair in path[1:].split("L")], float)
    (line,), marks = of_class(picture, "taken"), of_class(picture, "mark")
    assert group.caption.startswith("all 16 filters" if left == 16 else f"{left} of 16 filters")
    assert len(marks) == (left >= 4)
    for mark in marks:
        at = float(mark.get("cx"))
        assert at == float(line.get("x1"))
        assert float(mark.get("cy")) == pytest.approx(np.interp(at, places[:, 0], places[:, 1]), abs=0.1)


@pytest.mark.parametrize("curve", [[[16, 0.0]], [[16, 0.0], [8, 0.0]]], ids=["whole alone", "no distance"])
def test_a_group_without_a_distance_has_a_chart(curve: list[list[float]]) -> None:
    note = sensitivity(1)
    note["groups"][0]["curve"] = curve
    (group,) = group_curves(note, TOP1).groups
    assert len(of_class(ET.fromstring(group.drawing), "curve")) == 1


def test_the_distance_of_boxes_has_no_unit() -> None:
    found = group_curves(sensitivity(2), MAP50)
    assert "in classes and boxes" in found.legend
    assert "nats" not in found.legend + found.takeaway + "".join(group.drawing for group in found.groups)


def test_steps_are_a_line_of_percents() -> None:
    found = step_curve(STEPS, TOP1)
    assert found.rows[-1] == ("3", "50.0 %", "60.0 %", "89.10 %")
    assert "went in 3 steps" in found.takeaway
    assert found.takeaway.endswith("with 89.10 % validation top-1, 2.10 points less than after the first.")
    picture = ET.fromstring(found.drawing)
    assert [text.text for text in of_class(picture, "axis-label")] == ["MACs left, %", "validation top-1, %"]
    marks = of_class(picture, "mark")
    assert [mark.get("class").split()[1] for mark in marks] == ["plain", "plain", "chosen"]
    across, down = ([float(mark.get(name)) for mark in marks] for name in ("cx", "cy"))
    assert across == sorted(across, reverse=True)  # each step has fewer MACs
    assert down == sorted(down)
    assert marks[0][0].text == "step 1: 91.20 % with 80.0 % of the MACs"
    other = [{name.replace("top1", "auroc"): value for name, value in step.items()} for step in STEPS]
    assert "validation AUROC, 2.10 points less" in step_curve(other, AUROC).takeaway
