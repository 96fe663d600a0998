"""Average precision by hand and against torchmetrics', its resamples, and the objects that a network loses."""

import numpy as np
import pytest

from compress.tasks import coco_metrics
from compress.tasks.coco_metrics import coco_figures
from compress.utils.average_precision import (
    Matches,
    average_precision,
    bootstrap,
    found_objects,
    lost_objects,
    match,
    precision_recall,
)
from compress.utils.detections import pad
from compress.utils.errors import UserError
from compress.utils.resampling import interval, mean_over_labels, p_value

OBJECT, DIFFICULT, CROWD = 0, 1, 2


@pytest.fixture
def torchmetrics() -> None:
    """Skips a test where the extra detection is not installed."""
    pytest.importorskip("torchmetrics", reason="the extra detection is not installed")
    pytest.importorskip("faster_coco_eval", reason="the extra detection is not installed")


def drawn_set(images: int = 60, classes: int = 4, seed: int = 0, spread: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Detections and targets: boxes that are moved by about `spread` pixels from the objects, and some at random.

    Some images have no objects or no detections; a tenth of the objects are difficult and a tenth are crowds; scores
    have two digits, so that many are equal.
    """
    generator = np.random.default_rng(seed)
    targets, detections = [], []
    for image in range(images):
        count = 0 if image % 7 == 0 else generator.integers(1, 9)
        corners = generator.uniform(0, 200, (count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(15, 120, (count, 2))], axis=1)
        numbers, flags = generator.integers(0, classes, count), generator.choice(3, count, p=[0.8, 0.1, 0.1])
        targets.append(np.column_stack([numbers, boxes, flags]))
        repeated = np.repeat(np.arange(count), 2)
        near = boxes[repeated] + generator.normal(0, spread, (len(repeated), 4))
        corners = generator.uniform(0, 150, (4, 2))
        near = np.concatenate([near, np.concatenate([corners, corners + 50], axis=1)])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guessed = np.append(numbers[repeated], generator.integers(0, classes, 4))
        rows = np.column_stack([guessed, generator.random(len(near)).round(2), near])
        detections.append(np.zeros((0, 6)) if image % 11 == 5 else rows[np.argsort(-rows[:, 1], kind="stable")])
    return pad(detections, 30), pad(targets, 12)


def hand_made() -> tuple[np.ndarray, np.ndarray]:
    """Two images with three objects of class 0, and a detection of class 1, which has no objects."""
    first = [[0, 0, 0, 10, 10, OBJECT], [0, 20, 20, 30, 30, OBJECT]]
    second = [[0, 0, 0, 10, 10, OBJECT]]
    in_first = [[0, 0.9, 0, 0, 10, 10], [0, 0.8, 50, 50, 60, 60], [1, 0.7, 0, 0, 10, 10]]
    in_second = [[0, 0.6, 0, 0, 10, 9], [0, 0.5, 0, 0, 10, 10]]
    return pad([np.array(in_first), np.array(in_second)], 4), pad([np.array(first), np.array(second)], 3)


def test_by_hand() -> None:
    """By score: a hit, a miss, a hit with IoU 0.9, and a miss, since its object is taken.

    Precision is 1 up to a recall of 1/3, which are the 34 recalls 0.00 to 0.33, and 2/3 up to 2/3, which are the 33
    recalls 0.34 to 0.66. The third object is never found.
    """
    matches = match(*hand_made(), classes=2)
    assert matches.hits[matches.classes == 0].tolist() == [True, False, True, False]
    assert matches.objects.tolist() == [[2, 0], [1, 0]]
    by_class = average_precision(matches)
    assert by_class[0, 0] == pytest.approx(100 * (34 * 1 + 33 * 2 / 3) / 101)
    assert np.isnan(by_class[0, 1])
    recall, precision = precision_recall(matches, 0)
    assert recall[[0, 33, 100]] == pytest.approx([0, 0.33, 1])
    assert precision[[0, 33, 34, 66, 67]] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0])
    assert np.isnan(precision_recall(matches, 1)[1]).all()


def test_a_higher_threshold_leaves_the_looser_box_out() -> None:
    """The box with IoU 0.9 is a miss now, and the exact one behind it is the hit: precision 1 and 2/4."""
    matches = match(*hand_made(), classes=2, iou=0.95)
    assert matches.hits[matches.classes == 0].tolist() == [True, False, False, True]
    assert average_precision(matches)[0, 0] == pytest.approx(100 * (34 * 1 + 33 / 2) / 101)


@pytest.mark.parametrize("flag", [DIFFICULT, CROWD])
def test_what_matches_an_object_with_a_flag_does_not_count(flag: int) -> None:
    targets = pad([np.array([[0, 0, 0, 100, 100, flag], [0, 200, 200, 210, 210, OBJECT]])], 2)
    rows = [[0, 0.9, 0, 0, 20, 20], [0, 0.8, 0, 0, 90, 90], [0, 0.7, 200, 200, 210, 210], [0, 0.6, 150, 0, 160, 10]]
    matches = match(pad([np.array(rows)], 4), targets, classes=1)
    assert matches.scores == pytest.approx([0.7, 0.6])
    assert matches.hits.tolist() == [True, False]
    assert matches.objects.tolist() == [[1]]


def test_an_object_is_matched_before_one_with_a_flag() -> None:
    """The crowd overlaps more: the box lies in it, and shares 0.81 of the union with the object."""
    targets = pad([np.array([[0, 0, 0, 100, 100, CROWD], [0, 0, 0, 10, 10, OBJECT]])], 2)
    matches = match(pad([np.array([[0, 0.9, 0, 0, 9, 9]])], 1), targets, classes=1)
    assert matches.hits.tolist() == [True]


@pytest.mark.usefixtures("torchmetrics")
@pytest.mark.parametrize("seed", range(4))
def test_it_is_torchmetrics(seed: int) -> None:
    detections, targets = drawn_set(seed=seed)
    targets[targets[..., 0] == 2] = -2  # a class without objects, with detections
    found = average_precision(match(detections, targets, classes=6))[0]  # class 5 has neither
    figures = coco_figures(detections, targets, classes=6)
    expected = [np.nan if value is None else value for value in figures["map50_by_class"]]
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert np.isnan(found[[2, 4, 5]]).all()
    assert 10 < found[0] < 90
    assert figures["map50"] == pytest.approx(mean_over_labels(found), abs=1e-4)


@pytest.mark.usefixtures("torchmetrics")
def test_the_mean_over_thresholds_is_torchmetrics() -> None:
    detections, targets = drawn_set(seed=5, spread=3.0)
    thresholds = np.linspace(0.5, 0.95, 10)
    found = np.mean([average_precision(match(detections, targets, 4, iou))[0] for iou in thresholds], axis=0)
    figures = coco_figures(detections, targets, classes=4)
    assert figures["map_by_class"] == pytest.approx(found.tolist(), abs=1e-4)
    assert figures["map"] == pytest.approx(found.mean(), abs=1e-4)


@pytest.mark.usefixtures("torchmetrics")
def test_no_detections_are_zero_and_no_objects_are_none() -> None:
    detections, targets = drawn_set(images=8)
    nothing = np.full_like(detections, -2)
    assert (average_precision(match(nothing, targets, 4)) == 0).all()
    assert coco_figures(nothing, targets, 4)["map50"] == 0
    without = match(detections, np.full_like(targets, -2), 4)
    assert np.isnan(average_precision(without)).all()
    for rows in (detections, nothing):
        figures = coco_figures(rows, np.full_like(targets, -2), 4)
        assert figures["map_by_class"] == [None] * 4
        assert figures["map"] is None


def test_images_that_count_twice_are_images_that_are_there_twice() -> None:
    detections, targets = drawn_set()
    matches = match(detections, targets, 4)
    generator = np.random.default_rng(1)
    weights = np.stack([np.ones(60), np.full(60, 2), generator.integers(0, 3, 60)]).astype(float)
    once, twice, some = average_precision(matches, weights)
    assert twice == pytest.approx(once)
    assert once == pytest.approx(average_precision(matches)[0])
    drawn = np.repeat(np.arange(60), weights[2].astype(int))
    # equal scores of several images are in another order once images repeat
    distinct = detections.copy()
    distinct[..., 1] += np.where(distinct[..., 0] >= 0, generator.random(distinct.shape[:2]) * 1e-3, 0)
    some = average_precision(match(distinct, targets, 4), weights)[2]
    assert some == pytest.approx(average_precision(match(distinct[drawn], targets[drawn], 4))[0])


def test_the_order_of_an_images_detections_does_not_count() -> None:
    detections, targets = drawn_set()
    detections[..., 1] += np.arange(detections.shape[1]) * 1e-4 * (detections[..., 0] >= 0)  # scores that differ
    turned = average_precision(match(detections[:, ::-1], targets, 4))
    assert turned == pytest.approx(average_precision(match(detections, targets, 4)))


def test_an_interval_holds_the_estimate() -> None:
    matches = match(*drawn_set(), 4)
    (resampled,) = bootstrap(matches)
    assert resampled.shape == (1000, 4)
    estimate = average_precision(matches)[0]
    for number in range(4):
        low, high = interval(resampled[:, number])
        assert low < estimate[number] < high
        assert high - low < 60
    low, high = interval(mean_over_labels(resampled))
    assert low < mean_over_labels(estimate) < high


def test_the_same_network_twice_is_no_difference_and_a_worse_one_is() -> None:
    detections, targets = drawn_set(images=150, spread=3.0)
    worse, _ = drawn_set(images=150, spread=14.0)
    matches = match(detections, targets, 4)
    same, again, other = bootstrap(matches, matches, match(worse, targets, 4))
    assert (same == again).all()
    assert p_value(mean_over_labels(same) - mean_over_labels(again)) == 1.0
    assert interval(mean_over_labels(same) - mean_over_labels(other))[0] > 0


def test_a_resample_without_objects_of_a_class_has_no_figure() -> None:
    matches = Matches(np.array([0]), np.array([0]), np.array([0.9]), np.array([True]), np.array([[1], [0]]))
    assert average_precision(matches, np.array([[0.0, 2.0], [1.0, 1.0]])) == pytest.approx(
        np.array([[np.nan], [100.0]]), nan_ok=True
    )


def test_lost_objects() -> None:
    """Two small objects, one large, one difficult; the network finds one small, the reference the other and the large.

    A detection of a low score finds nothing.
    """
    objects = [
        [1, 0, 0, 10, 10, OBJECT],
        [1, 20, 20, 30, 30, OBJECT],
        [1, 40, 40, 60, 60, DIFFICULT],
        [0, 100, 100, 250, 250, OBJECT],
    ]
    found = [[1, 0.9, 0, 0, 10, 10], [1, 0.8, 40, 40, 60, 60], [1, 0.4, 20, 20, 30, 30]]
    by_reference = [[0, 0.9, 100, 100, 250, 240], [1, 0.6, 20, 20, 30, 30]]
    rows = lost_objects(pad([np.array(found)]), pad([np.array(by_reference)]), pad([np.array(objects)]), classes=3)
    assert rows == [
        {"class": 0, "size": "large", "objects": 1, "found": 0, "reference_found": 1, "lost": 1, "gained": 0},
        {"class": 1, "size": "small", "objects": 2, "found": 1, "reference_found": 1, "lost": 1, "gained": 1},
    ]


def test_an_objects_size_is_its_area() -> None:
    sides = [31, 32, 95, 96]
    objects = np.array([[0, 0, 0, side, side, OBJECT] for side in sides])
    nothing = pad([np.zeros((0, 6))])
    rows = lost_objects(nothing, nothing, pad([objects]), classes=1)
    assert [(row["size"], row["objects"]) for row in rows] == [("small", 1), ("medium", 2), ("large", 1)]


def test_the_extra_is_named_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_metrics, "find_spec", lambda name: None if name == "faster_coco_eval" else object())
    with pytest.raises(UserError, match=r"pip install \"compress\[detection\]\""):
        coco_figures(*hand_made(), classes=2)


def test_found_objects_and_false_detections_are_told_apart() -> None:
    """A detection of a crowd is neither, a second one of the same object is false, and an unsure one does not count."""
    targets = np.array([[[0, 0, 0, 20, 20, OBJECT], [-2] * 6, [0, 40, 40, 80, 80, CROWD]]], np.float32)
    rows = [
        [0, 0.7, 1, 1, 20, 20],
        [0, 0.9, 0, 0, 20, 20],
        [0, 0.8, 50, 50, 60, 60],
        [1, 0.6, 0, 0, 20, 20],
        [1, 0.4, 0, 0, 20, 20],
        [-2] * 6,
    ]
    found, false = found_objects(np.array([rows], np.float32), targets)
    assert found.tolist() == [[True, False, True]]
    assert false.tolist() == [[True, False, False, True, False, False]]


def test_one_of_several_processes_measures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others train with it and wait: a question to them would never be answered."""
    torchmetrics = pytest.importorskip("torchmetrics", reason="the extra detection is not installed")
    asked: list[object] = []
    monkeypatch.setattr(torchmetrics.metric, "jit_distributed_available", lambda: True)
    monkeypatch.setattr(torchmetrics.metric.Metric, "_sync_dist", lambda *_, **__: asked.append(None))
    detections, targets = np.full((1, 1, 6), -2.0), np.array([[[0.0, 0, 0, 9, 9, 0]]])
    assert coco_figures(detections, targets, 1)["map50"] == 0
    assert not asked
