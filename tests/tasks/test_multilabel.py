"""Independent labels: losses and distances by hand, and the properties that stages rely on."""

import math

import pytest
import torch
from torch import Tensor

from compress.tasks import CLASSIFICATION, TASKS, Task
from compress.utils.missing import Unavailable

MULTILABEL = TASKS["multilabel"]
TASKS_OF_LOGITS = {task.name: task for task in (CLASSIFICATION, MULTILABEL)}  # boxes: test_detection.py
LOGITS = torch.tensor([[0.0, 2.0], [-1.0, 3.0], [2.0, -2.0], [1.0, 0.5]])
TARGETS = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 1]])


def targets_of(task: Task) -> Tensor:
    return torch.tensor([0, 1, 0, 1]) if task is CLASSIFICATION else TARGETS


def test_the_loss_by_hand() -> None:
    """log(1 + exp(-z)) for a label that is there, log(1 + exp(z)) for one that is not."""
    expected = [
        (math.log(2) + math.log(1 + math.exp(-2))) / 2,
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2,
    ]
    assert MULTILABEL.losses(LOGITS, TARGETS)[:2].tolist() == pytest.approx(expected)
    assert MULTILABEL.loss(LOGITS, TARGETS).item() == pytest.approx(MULTILABEL.losses(LOGITS, TARGETS).mean().item())


def test_the_distance_by_hand() -> None:
    """Of one label with probabilities 0.5 and 0.8: 0.8 log(0.8 / 0.5) + 0.2 log(0.2 / 0.5)."""
    likely = torch.tensor([[math.log(4.0)]])
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert MULTILABEL.distance(torch.zeros(1, 1), likely).item() == pytest.approx(expected)


@pytest.mark.parametrize("task", TASKS_OF_LOGITS.values(), ids=TASKS_OF_LOGITS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_distance_is_0_from_itself_and_more_from_others(task: Task, temperature: float) -> None:
    assert task.distance(LOGITS, LOGITS, temperature).tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert (task.distance(LOGITS, LOGITS.flip(0), temperature) > 0).all()


@pytest.mark.parametrize("task", TASKS_OF_LOGITS.values(), ids=TASKS_OF_LOGITS)
def test_a_distance_has_its_least_value_at_the_teacher(task: Task) -> None:
    student = LOGITS.clone().requires_grad_()
    task.distance(student, LOGITS).mean().backward()
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("task", TASKS_OF_LOGITS.values(), ids=TASKS_OF_LOGITS)
def test_figures_have_the_keys_of_the_metric(task: Task) -> None:
    targets, metric = targets_of(task), task.metric
    figures = task.figures(LOGITS, LOGITS + 0.1, targets) | task.compare(
        task.predictions(targets, LOGITS, {"onnx": LOGITS}), None
    )
    assert metric.percent(figures) == pytest.approx(task.score(LOGITS + 0.1, targets))
    low, high = metric.interval(figures)
    assert low <= metric.percent(figures) <= high
    assert metric.delta(figures) == 0
    assert isinstance(figures[metric.p_value], Unavailable)


@pytest.mark.parametrize("task", TASKS_OF_LOGITS.values(), ids=TASKS_OF_LOGITS)
def test_a_network_is_compared_on_the_same_images(task: Task) -> None:
    targets = targets_of(task)
    teacher = task.predictions(targets, LOGITS, {"onnx": LOGITS})
    other = task.predictions(targets, LOGITS, {"onnx": -LOGITS})
    figures = task.compare(other, teacher)
    assert task.metric.delta(figures) == pytest.approx(task.score(-LOGITS, targets) - task.score(LOGITS, targets))
    assert 0 < figures[task.metric.p_value] <= 1
    delta, (low, high) = task.difference(-LOGITS, LOGITS, targets)
    assert low <= delta <= high


def test_decisions_at_one_half() -> None:
    assert MULTILABEL.mistakes(LOGITS, TARGETS).tolist() == [0.0, 0.0, 0.0, 0.0]
    assert MULTILABEL.mistakes(-LOGITS, TARGETS).tolist() == [0.5, 1.0, 1.0, 1.0]  # 0 is no label
    assert MULTILABEL.pseudo_targets(LOGITS).tolist() == TARGETS.tolist()


def test_smoothing_draws_targets_to_the_middle() -> None:
    assert MULTILABEL.loss(LOGITS, TARGETS, smoothing=1.0).item() == pytest.approx(
        MULTILABEL.loss(LOGITS, torch.full_like(LOGITS, 0.5)).item()
    )
