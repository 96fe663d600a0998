"""Figures of single classes against scikit-learn's, sensitivities against a count, and how sure a classifier is."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from compress.tasks import TASKS
from compress.tasks.calibration import calibration_error_percent, calibration_figures
from compress.tasks.class_figures import class_figures, operating_point
from compress.utils.missing import Unavailable


def drawn(seed: int, count: int = 400, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K) that know the class somewhat, and classes (N,), the last of which is rare."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.3, 0.17, 0.03])[:classes]
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_classes_are_scikit_learns(seed: int) -> None:
    logits, labels = drawn(seed)
    predicted = logits.argmax(1).numpy()
    found = class_figures(predicted, labels.numpy(), 4)
    arguments = (labels.numpy(), predicted)
    assert found["deployed_balanced_accuracy_percent"] == pytest.approx(
        100 * metrics.balanced_accuracy_score(*arguments)
    )
    assert found["deployed_macro_f1_percent"] == pytest.approx(100 * metrics.f1_score(*arguments, average="macro"))
    parts = metrics.precision_recall_fscore_support(*arguments, zero_division=0)
    for name, wanted in zip(("precision", "recall", "f1"), parts, strict=False):
        assert found[f"deployed_{name}_by_class_percent"] == pytest.approx((100 * wanted).tolist())
    low, high = found["deployed_balanced_accuracy_ci95_percent"]
    assert low < found["deployed_balanced_accuracy_percent"] < high


def test_a_class_without_an_image_is_in_no_mean() -> None:
    found = class_figures(np.array([0, 1, 2, 0]), np.array([0, 1, 1, 0]), 4)
    assert found["deployed_recall_by_class_percent"] == [100, 50, None, None]
    assert found["deployed_balanced_accuracy_percent"] == 75


def test_rare_classes_count_as_much_as_frequent_ones() -> None:
    labels = np.array([0] * 99 + [1])
    found = class_figures(np.zeros(100, int), labels, 2)
    assert found["deployed_balanced_accuracy_percent"] == 50


def test_without_a_specificity_to_keep_everyone_is_called() -> None:
    scores, has = np.array([0.1, 0.4, 0.6]), np.array([True, False, True])
    found = operating_point((scores, has), (scores, has), 0.0)
    assert (found["sensitivity_percent"], found["specificity_percent"]) == (100, 0)


@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95, 1.0])
def test_a_threshold_keeps_its_specificity_and_no_lower_one_does(specificity: float) -> None:
    logits, labels = drawn(1)
    scores, has = logits.softmax(1)[:, 0].numpy(), (labels == 0).numpy()
    found = operating_point((scores, has), (scores, has), specificity)
    reached = lambda threshold: (scores[~has] < threshold).mean()
    assert reached(found["threshold"]) >= specificity
    lower = scores[scores < found["threshold"]].max()
    assert reached(lower) < specificity
    assert found["sensitivity_percent"] == pytest.approx(100 * (scores[has] >= found["threshold"]).mean())
    assert found["specificity_percent"] == pytest.approx(100 * reached(found["threshold"]))


def test_without_an_image_that_lacks_the_class_there_is_no_threshold() -> None:
    everyone = (np.array([0.3, 0.7]), np.array([True, True]))
    assert operating_point(everyone, everyone, 0.9)["sensitivity_percent"] is None


def test_the_calibration_error_is_the_gap_by_hand() -> None:
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([1, 1, 1, 0, 1, 0])
    assert calibration_error_percent(confidences, right) == pytest.approx(100 * (4 * 0.20 + 2 * 0.05) / 6)
    assert calibration_error_percent(np.full(20, 0.5), np.arange(20) % 2) == pytest.approx(0)
    assert calibration_error_percent(np.ones(3), np.ones(3)) == 0


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_temperature_mends_confidence(scale: float) -> None:
    logits, _ = drawn(0, 20_000)
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(2))[:, 0]
    halves = [(scale * part, own) for part, own in zip(logits.chunk(2), labels.chunk(2), strict=True)]
    found = calibration_figures(*halves)
    assert found["temperature"] == pytest.approx(scale, rel=0.05)
    assert found["deployed_calibration_error_at_temperature_percent"] < 2
    assert found["deployed_calibration_error_percent"] > 5


def test_where_all_validation_images_are_right_no_temperature_is_fitted() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 2.0]])
    found = calibration_figures((logits, torch.tensor([0, 1])), (logits, torch.tensor([0, 1])))
    assert isinstance(found["temperature"], Unavailable)
    assert found["deployed_calibration_error_percent"] > 0


def test_two_labels_of_which_one_is_true_are_two_classes() -> None:
    """A softmax of two classes is the sigmoid of the difference: both tasks agree on how sure they are."""
    logits, labels = drawn(3, classes=2)
    margin = logits[:, 1:] - logits[:, :1]
    classes = TASKS["classification"].screening((logits, labels), (logits, labels), 0.9)
    single = TASKS["multilabel"].screening((margin, labels[:, None]), (margin, labels[:, None]), 0.9)
    assert single["temperature"] == pytest.approx(classes["temperature"], rel=1e-3)
    key = "deployed_calibration_error_percent"
    assert single[key] == pytest.approx(classes[key], abs=1e-4)
    (one,), (other,) = classes["operating_points"], single["operating_points"]
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_thresholds_are_of_the_probabilities_that_users_get(task: str) -> None:
    logits, labels = drawn(4)
    targets = labels if task == "classification" else (labels[:, None] == torch.arange(4)).long()
    val, test = ((4 * logits[part], targets[part]) for part in (slice(0, 200), slice(200, 400)))
    found = TASKS[task].screening(val, test, 0.9)
    assert found["temperature"] > 1.5
    scores = test[0].double() / found["temperature"]
    probabilities = scores.softmax(1) if task == "classification" else scores.sigmoid()
    for number, point in enumerate(found["operating_points"]):
        has = labels[200:] == number
        called = probabilities[:, number] >= point["threshold"]
        assert 100 * called[has].double().mean() == pytest.approx(point["sensitivity_percent"])
        assert 100 * (~called[~has]).double().mean() == pytest.approx(point["specificity_percent"])
