"""What the pictures rest on: fronts, round ticks, labels that can be read, and counts that add up."""

import numpy as np
import pytest

from compress.report.classification import class_losses, confusion
from compress.report.gallery import overlay
from compress.report.svg import Point, pareto_front, scatter, ticks


def point(x: float, y: float, label: str = "a") -> Point:
    return Point(x, y, y - 1, y + 1, label, f"{label}: {y}")


def test_a_front_holds_what_no_other_point_beats() -> None:
    points = [point(3, 90), point(1, 70), point(2, 80), point(2, 75), point(4, 89), point(3, 60)]
    assert [(p.x, p.y) for p in pareto_front(points)] == [(1, 70), (2, 80), (3, 90)]


def test_a_front_agrees_with_its_definition() -> None:
    generator = np.random.default_rng(0)
    points = [point(*map(float, pair)) for pair in generator.integers(0, 12, (60, 2))]

    def beaten(p: Point) -> bool:
        return any(q.x <= p.x and q.y >= p.y and (q.x, q.y) != (p.x, p.y) for q in points)

    wanted = sorted((p.x, p.y) for p in points if not beaten(p))
    assert sorted((p.x, p.y) for p in pareto_front(points)) == wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (96.1, 99.8, [97, 98, 99]), (0.0, 9500.0, [0, 2000, 4000, 6000, 8000])],
)
def test_ticks_are_round_and_inside(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


def test_labels_of_points_in_one_place_do_not_cover_one_another() -> None:
    points = [point(1.0, 90.0, name) for name in ("prune", "distill", "quantize")]
    drawn = scatter(points, "chart", "title", "x", "y")
    places = {part.split(' text-anchor="')[0] for part in drawn.split('class="label')[1:]}
    assert len(places) == 3


def test_a_chart_of_one_point_has_a_scale() -> None:
    assert "nan" not in scatter([point(0.0, 100.0)], "chart", "title", "x", "y").lower()


def test_a_charts_text_is_escaped() -> None:
    drawn = scatter([point(1.0, 50.0, "<b>&")], "chart", "title", "x", "y")
    assert "<b>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn


def test_confusion_counts_every_image_once() -> None:
    labels, predicted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2])
    assert confusion(labels, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_the_class_that_lost_most_comes_first_and_empty_ones_not_at_all() -> None:
    theirs = np.diag([4, 5, 0, 2])
    own = np.array([[3, 1, 0, 0], [0, 5, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    found = class_losses(own, theirs, ["a", "b", "c", "d"])
    assert [(row.name, row.points_lost) for row in found] == [("d", 100.0), ("a", 25.0), ("b", 0.0)]


def test_an_overlay_is_brighter_where_there_is_heat() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    heat = np.array([[0, 255], [0, 0]], np.uint8)
    found = overlay(image, heat).sum(2, dtype=int)
    assert found[0, 1] > found[0, 0] == found[1, 1]
