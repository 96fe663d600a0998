"""Boxes: anchors, losses and distances by hand, and the properties that stages rely on."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.models.anchor_rows import (
    anchors_of,
    class_logits,
    decode,
    encode,
    priors,
    regressions,
    to_decoded_rows,
    to_rows,
    unlimited_boxes,
)
from compress.tasks import TASKS
from compress.tasks.detection import detections
from compress.tasks.detection_loss import match_anchors, ssd_losses
from compress.utils.detections import PADDING
from compress.utils.missing import Unavailable

pytest.importorskip("torchmetrics", reason="the extra detection is not installed")

DETECTION = TASKS["detection"]
SIDE = 100
ANCHORS = torch.tensor([[0.0, 0, 20, 20], [40, 40, 80, 80], [60, 0, 100, 40], [0, 50, 30, 100]])
SURE = 8.0  # a logit that makes a class all but certain
_PADDED = [PADDING] * 6


def rows_of(regression: Tensor, logits: Tensor) -> Tensor:
    return to_rows(regression, priors(ANCHORS, SIDE), logits)


def rows_for(classes: list[list[int]], scale: float = SURE) -> Tensor:
    """Rows whose boxes are the anchors, with a sure class each; 0 is the background."""
    logits = torch.nn.functional.one_hot(torch.tensor(classes), 3).float() * scale
    return rows_of(torch.zeros(len(classes), len(ANCHORS), 4), logits)


def random_rows(images: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return rows_of(
        torch.randn(images, len(ANCHORS), 4, generator=generator),
        torch.randn(images, len(ANCHORS), 3, generator=generator),
    )


def target(*objects: list[float]) -> Tensor:
    """Targets (1, 3, 6) of one image."""
    return torch.tensor([[*objects, *[_PADDED] * (3 - len(objects))]])


TARGETS = torch.cat([target([0, 0, 0, 20, 20, 0]), target([1, 42, 42, 82, 82, 0], [0, 60, 0, 100, 40, 0]), target()])


def test_a_box_by_hand() -> None:
    """The anchor 40..80, moved right by 0.1 of its size, and twice as wide."""
    regression = torch.zeros(1, len(ANCHORS), 4)
    regression[0, 1] = torch.tensor([10 * 0.1, 0, 5 * math.log(2), 0])
    boxes, scores = decode(rows_of(regression, torch.zeros(1, len(ANCHORS), 3)))
    assert boxes[0, 1].tolist() == pytest.approx([24, 40, 100, 80])  # 104 ends at the image's edge
    assert unlimited_boxes(rows_of(regression, torch.zeros(1, len(ANCHORS), 3)))[0, 1, 2].item() == pytest.approx(104)
    assert scores[0, 0].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_encoding_is_the_inverse_of_decoding() -> None:
    rows = random_rows()
    torch.testing.assert_close(anchors_of(rows), ANCHORS.expand(3, -1, -1))
    torch.testing.assert_close(encode(unlimited_boxes(rows), anchors_of(rows)), regressions(rows), rtol=1e-4, atol=1e-4)


def test_the_outputs_of_a_file_become_rows_with_the_same_boxes_and_scores() -> None:
    boxes, scores = decode(random_rows())
    found_boxes, found_scores = decode(to_decoded_rows(boxes, scores))
    torch.testing.assert_close(found_boxes, boxes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found_scores, scores)
    again = DETECTION.files.join([boxes.numpy(), scores.numpy()])
    assert np.array_equal(detections(again), detections(to_decoded_rows(boxes, scores)))


def test_anchors_take_the_object_that_they_overlap_most() -> None:
    """An object that no anchor overlaps by one half gets the nearest; padding gets none; a crowd is ignored."""
    classes, boxes = match_anchors(
        rows_for([[0] * 4] * 2),
        torch.cat([target([1, 42, 42, 82, 82, 0], [0, 0, 0, 8, 8, 0]), target([0, 0, 0, 20, 20, 2])]),
    )
    assert classes.tolist() == [[1, 2, 0, 0], [-100, 0, 0, 0]]
    assert boxes[0, 1].tolist() == [42, 42, 82, 82]
    assert boxes[0, 0].tolist() == [0, 0, 8, 8]


def test_a_difficult_object_is_trained() -> None:
    classes, _ = match_anchors(rows_for([[0] * 4]), target([1, 0, 0, 20, 20, 1]))
    assert classes.tolist() == [[2, 0, 0, 0]]


def test_the_loss_by_hand() -> None:
    """One matched anchor, off by one regression unit, and the three anchors of the background."""
    regression = torch.zeros(1, 4, 4)
    regression[0, 0, 0] = 3.0  # smooth L1: 3 - 0.5
    rows = rows_of(regression, torch.zeros(1, 4, 3))
    assert ssd_losses(rows, target([0, 0, 0, 20, 20, 0])).tolist() == pytest.approx([2.5 + 4 * math.log(3)])


def test_hard_negatives_are_three_for_each_match() -> None:
    """Two of five background anchors are left out: those that are surest of the background."""
    logits = torch.zeros(1, 6, 3)
    logits[0, 4:, 0] = SURE
    anchors = torch.cat([ANCHORS, ANCHORS[:2] + 3])
    rows = to_rows(torch.zeros(1, 6, 4), priors(anchors, SIDE), logits)
    matched = target([0, 40, 40, 80, 80, 0])
    classes, _ = match_anchors(rows, matched)
    count = int((classes > 0).sum())
    easy = 6 - count - min(3 * count, 6 - count)
    expected = torch.nn.functional.cross_entropy(logits[0], classes[0], reduction="none")
    kept = expected.sort(descending=True).values[: 6 - easy] if easy else expected
    off = ssd_losses(rows, matched).item() * count - kept.sum().item()
    box = encode(torch.tensor([40.0, 40, 80, 80]).expand(count, 4), anchors[classes[0] > 0]).abs()
    assert off == pytest.approx(torch.where(box < 1, box**2 / 2, box - 0.5).sum().item(), abs=1e-4)


def test_an_image_without_objects_learns_the_background() -> None:
    assert ssd_losses(rows_for([[0] * 4]), target()).item() < 0.01
    assert ssd_losses(rows_for([[1, 0, 0, 0]]), target()).item() > SURE - 1


def test_losses_are_those_of_each_image_alone() -> None:
    rows = random_rows()
    alone = [DETECTION.losses(rows[at : at + 1], TARGETS[at : at + 1]).item() for at in range(3)]
    assert DETECTION.losses(rows, TARGETS).tolist() == pytest.approx(alone)
    assert DETECTION.loss(rows, TARGETS).item() == pytest.approx(sum(alone) / 3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_distance_is_0_from_itself_and_more_from_others(temperature: float) -> None:
    rows, other = rows_for([[0, 1, 2, 0]] * 2), random_rows(2)
    assert DETECTION.distance(rows, rows, temperature).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert (DETECTION.distance(other, rows, temperature) > 0).all()


def test_a_distance_has_its_least_value_at_the_teacher() -> None:
    reference = random_rows()
    student = reference.clone().requires_grad_()
    DETECTION.distance(student, reference).mean().backward()
    assert student.grad.abs().max() < 1e-4


def test_a_distance_weighs_objects_more_than_background() -> None:
    """The same change of logits on an anchor that holds an object, and on one that both hold for background."""
    reference = rows_for([[1, 0, 0, 0]], 4.0)
    changed = [reference.clone() for _ in range(2)]
    changed[0][0, 0, 10] -= 1  # the logit of the object's class
    changed[1][0, 1, 9] -= 1  # that of the background
    on_object, on_background = (DETECTION.distance(one, reference).item() for one in changed)
    assert on_object > 5 * on_background


def test_a_false_alarm_of_the_student_counts() -> None:
    """Where the teacher is sure of the background, too."""
    reference, student = rows_for([[1, 0, 0, 0]]), rows_for([[1, 0, 2, 0]])
    assert DETECTION.distance(student, reference).item() > 1


def test_boxes_count_where_the_teacher_holds_an_object() -> None:
    reference = rows_for([[1, 0, 0, 0]])
    moved = [reference.clone() for _ in range(2)]
    moved[0][0, 0, 0] += 1
    moved[1][0, 1, 0] += 1
    on_object, on_background = (DETECTION.distance(one, reference).item() for one in moved)
    assert on_object == pytest.approx(0.5, abs=1e-3)
    assert on_background == pytest.approx(0, abs=1e-5)


def test_mistakes_are_what_the_average_precision_of_an_image_lacks() -> None:
    found = rows_for([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    assert DETECTION.mistakes(found, TARGETS).tolist() == pytest.approx([0, 0.5, 0], abs=1e-6)
    assert DETECTION.mistakes(rows_for([[1, 0, 0, 0]]), target()).tolist() == [1]


def test_a_perfect_detector_has_100_percent() -> None:
    perfect = rows_for([[1, 0, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]])
    assert DETECTION.score(perfect, TARGETS) == pytest.approx(100)
    assert DETECTION.score(rows_for([[0] * 4] * 3), TARGETS) < 100


def test_pseudo_targets_are_the_sure_boxes() -> None:
    found = DETECTION.pseudo_targets(rows_for([[1, 2, 0, 0], [0, 0, 0, 0]]))
    assert found.shape == (2, 100, 6)
    assert found[0, :2].tolist() == [pytest.approx(row) for row in ([0.0, 0, 0, 20, 20, 0], [1.0, 40, 40, 80, 80, 0])]
    assert bool((found[0, 2:] == PADDING).all())
    assert bool((found[1] == PADDING).all())


def test_figures_have_the_keys_of_the_metric() -> None:
    rows, metric = rows_for([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]), DETECTION.metric
    figures = DETECTION.figures(rows, rows, TARGETS) | DETECTION.compare(
        DETECTION.predictions(TARGETS, rows, {"onnx": rows}), None
    )
    assert metric.percent(figures) == pytest.approx(DETECTION.score(rows, TARGETS))
    low, high = metric.interval(figures)
    assert low <= metric.percent(figures) <= high
    assert (figures["objects"], figures["images"]) == (3, 3)
    assert figures["deployed_agreement_percent"] == 100
    assert metric.delta(figures) == 0
    assert isinstance(figures[metric.p_value], Unavailable)


def test_a_network_is_compared_on_the_same_images() -> None:
    good, bad = rows_for([[1, 0, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]), rows_for([[2, 0, 0, 0], [0, 0, 1, 0], [0] * 4])
    teacher = DETECTION.predictions(TARGETS, good, {"onnx": good})
    other = DETECTION.predictions(TARGETS, good, {"onnx": bad})
    figures = DETECTION.compare(other, teacher)
    expected = DETECTION.score(bad, TARGETS) - DETECTION.score(good, TARGETS)
    assert DETECTION.metric.delta(figures) == pytest.approx(expected)
    assert figures["teacher_agreement_percent"] == pytest.approx(100 * 2 * 1 / (3 + 2))
    delta, (low, high) = DETECTION.difference(bad, good, TARGETS)
    assert delta == pytest.approx(expected)
    assert [low, high] == pytest.approx(figures["map50_delta_ci95_points"])


def test_class_logits_have_the_background_first() -> None:
    assert class_logits(rows_for([[0, 1, 2, 0]])).argmax(2).tolist() == [[0, 1, 2, 0]]
