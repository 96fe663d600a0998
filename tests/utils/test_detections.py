"""The boxes that a detector reports: non-maximum suppression against torchvision's, order, limits and padding."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from compress.utils.detections import PADDING, iou, pad, select


def drawn_boxes(count: int, seed: int = 0) -> np.ndarray:
    """Boxes (A, 4) of 20 to 120 pixels in an image of 320 x 320."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 200, (count, 2))
    return np.concatenate([corners, corners + generator.uniform(20, 120, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("classes", [1, 3, 20])
def test_it_is_torchvisions(classes: int) -> None:
    """All scores differ, since torchvision returns equal ones in no certain order."""
    ranks = np.random.default_rng(1).permutation(400 * classes).reshape(400, classes)
    boxes, scores = drawn_boxes(400), (ranks / ranks.size).astype(np.float32)
    found = select(boxes, scores, min_score=0.3, candidates=10**6, limit=10**6)
    anchors, numbers = np.nonzero(scores > 0.3)
    values, places = torch.from_numpy(scores[anchors, numbers]), torch.from_numpy(boxes[anchors])
    kept = batched_nms(places, values, torch.from_numpy(numbers), 0.5)
    expected = torch.column_stack([torch.from_numpy(numbers)[kept], values[kept], places[kept]]).numpy()
    assert len(found) > 50
    assert (found == expected).all()


def test_candidates_and_limit_keep_the_best() -> None:
    boxes, scores = drawn_boxes(300), np.random.default_rng(2).random((300, 4)).astype(np.float32)
    found = select(boxes, scores, max_iou=1.0, candidates=50, limit=1000)
    assert (found[:, 1] == np.sort(scores.ravel())[::-1][:50]).all()
    everything = select(boxes, scores, limit=1000)
    assert (select(boxes, scores, limit=7) == everything[:7]).all()
    assert (np.diff(everything[:, 1]) <= 0).all()


def test_equal_scores_are_in_the_order_of_anchors_then_classes() -> None:
    """Each anchor has a place of its own, so that no box is suppressed."""
    boxes = np.array([[x, 0, x + 5, 5] for x in range(0, 60, 10)], dtype=np.float32)
    found = select(boxes, np.full((6, 2), 0.5, dtype=np.float32), candidates=5)
    assert found[:, [2, 0]].tolist() == [[0, 0], [0, 1], [10, 0], [10, 1], [20, 0]]


def test_a_box_of_another_class_is_not_suppressed() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9]], dtype=np.float32)
    assert len(select(boxes, np.array([[0.9, 0.0], [0.0, 0.8]]))) == 2
    assert len(select(boxes, np.array([[0.9, 0.0], [0.8, 0.0]]))) == 1


def test_nothing_above_the_lowest_score() -> None:
    found = select(drawn_boxes(10), np.full((10, 3), 0.01, dtype=np.float32), min_score=0.5)
    assert found.shape == (0, 6)
    assert found.dtype == np.float32


def test_scores_that_are_no_numbers_are_not_reported() -> None:
    scores = np.full((10, 3), np.nan, dtype=np.float32)
    assert len(select(drawn_boxes(10), scores)) == 0


def test_pad() -> None:
    rows = [np.ones((3, 6)), np.zeros((0, 6)), np.ones((9, 6))]
    padded = pad(rows, limit=5)
    assert padded.shape == (3, 5, 6)
    assert padded.dtype == np.float32
    assert [(of_image[:, 0] != PADDING).sum() for of_image in padded] == [3, 0, 5]
    assert (padded[0, 3:] == PADDING).all()
    assert pad([], limit=5).shape == (0, 5, 6)


def test_iou_is_torchvisions() -> None:
    one, other = drawn_boxes(50), drawn_boxes(60, seed=1)
    expected = box_iou(torch.from_numpy(one).double(), torch.from_numpy(other).double()).numpy()
    assert iou(one, other) == pytest.approx(expected)


def test_iou_with_a_crowd_is_the_share_of_the_box_alone() -> None:
    """Half of a box of 100 pixels is in one of 1,000: 50 of 1,050, or 50 of 100."""
    box, wide = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 5, 100, 15]])
    assert iou(box, wide)[0, 0] == pytest.approx(50 / 1050)
    assert iou(box, wide, crowd=np.array([True]))[0, 0] == pytest.approx(0.5)


def test_iou_of_boxes_without_area() -> None:
    point = np.array([[3.0, 3, 3, 3]])
    assert iou(point, point)[0, 0] == 0
    assert iou(np.zeros((0, 4)), point).shape == (0, 1)
