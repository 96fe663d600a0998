"""The losses of logits: what must hold for any logits, then the papers' formulas in NumPy, in double precision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.methods.distillation.logit_losses import LOGIT_LOSSES, dist, dkd, kd, kd_standardized, mlkd
from compress.tasks import CLASSIFICATION

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
ALL = pytest.mark.parametrize("name", LOGIT_LOSSES)
TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def probabilities(seed: int, temperature: float) -> np.ndarray:
    """The softmaxes (N, K) of `logits`."""
    exponentials = np.exp(logits(seed).double().numpy() / temperature)
    return exponentials / exponentials.sum(1, keepdims=True)


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """KL(teacher || student) of each row (N, K), (N,)."""
    return (teacher * np.log(teacher / student)).sum(1)


# ---- Properties --------------------------------------------------------------------------------------------------


@ALL
@TEMPERATURES
def test_equal_logits_have_no_loss_and_others_have_one(name: str, temperature: float) -> None:
    loss = LOGIT_LOSSES[name].loss
    assert loss(logits(0), logits(0), LABELS, temperature).item() == pytest.approx(0, abs=2e-5)
    assert loss(logits(0), logits(1), LABELS, temperature) > 0.01


@ALL
def test_a_shift_of_an_images_logits_changes_nothing(name: str) -> None:
    loss = LOGIT_LOSSES[name].loss
    shift = torch.arange(6.0)[:, None]
    value = loss(logits(0), logits(1), LABELS, 2.0).item()
    assert loss(logits(0) + shift, logits(1) - 2 * shift, LABELS, 2.0).item() == pytest.approx(value, rel=1e-4)


@ALL
def test_the_order_of_the_images_does_not_matter(name: str) -> None:
    loss, order = LOGIT_LOSSES[name].loss, torch.tensor([3, 0, 5, 1, 4, 2])
    value = loss(logits(0), logits(1), LABELS, 2.0).item()
    assert loss(logits(0)[order], logits(1)[order], LABELS[order], 2.0).item() == pytest.approx(value, rel=1e-5)


@ALL
def test_a_gradient_reaches_the_student_only(name: str) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    LOGIT_LOSSES[name].loss(student, teacher, LABELS, 2.0).backward()
    assert teacher.grad is None
    assert torch.isfinite(student.grad).all()
    assert student.grad.norm() > 1e-3


@ALL
def test_steps_against_the_gradient_bring_the_students_classes_to_the_teachers(name: str) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    optimizer = torch.optim.Adam([student], lr=0.1)
    assert not torch.equal(student.argmax(1), teacher.argmax(1))
    for _ in range(200):
        optimizer.zero_grad()
        LOGIT_LOSSES[name].loss(student, teacher, LABELS, 2.0).backward()
        optimizer.step()
    assert torch.equal(student.argmax(1), teacher.argmax(1))


@ALL
@pytest.mark.parametrize(
    "student",
    [torch.zeros(3, 4), 200 * torch.eye(4)[:3], logits(2)[:1]],
    ids=["equal logits", "certain of one class", "one image"],
)
def test_values_and_gradients_are_finite_in_corner_cases(name: str, student: Tensor) -> None:
    student = student.clone().requires_grad_()
    value = LOGIT_LOSSES[name].loss(student, logits(1)[: len(student)], LABELS[: len(student)], 2.0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@TEMPERATURES
def test_kd_is_the_tasks_distance_to_the_bit(temperature: float) -> None:
    expected = temperature**2 * CLASSIFICATION.distance(logits(0), logits(1), temperature).mean()
    assert torch.equal(kd(logits(0), logits(1), LABELS, temperature), expected)


def test_the_size_of_the_students_logits_does_not_matter_where_they_are_standardized() -> None:
    value = kd_standardized(logits(0), logits(1), LABELS, 2.0).item()
    assert kd_standardized(7 * logits(0) + 3, logits(1), LABELS, 2.0).item() == pytest.approx(value, rel=1e-5)
    assert kd(7 * logits(0) + 3, logits(1), LABELS, 2.0).item() != pytest.approx(kd(logits(0), logits(1), LABELS, 2.0))


def test_dkd_weighs_the_other_classes_by_8_where_kd_weighs_them_by_the_teachers_doubt() -> None:
    """KL = TCKD + (1 - p) NCKD, with p the teacher's probability of the image's class (Zhao et al. 2022, section 3)."""
    temperature = 2.0
    confidence = probabilities(1, temperature)[np.arange(6), LABELS.numpy()]
    for image in range(6):
        row = logits(0)[[image]], logits(1)[[image]], LABELS[[image]], temperature
        teacher, student = (np.delete(probabilities(seed, temperature)[image], LABELS[image]) for seed in (1, 0))
        nckd = divergence((teacher / teacher.sum())[None], (student / student.sum())[None]).item()
        difference = (8 - (1 - confidence[image])) * temperature**2 * nckd
        assert dkd(*row).item() - kd(*row).item() == pytest.approx(difference, rel=1e-4)


def test_dist_is_blind_to_a_linear_map_of_the_probabilities() -> None:
    """A student whose probabilities are mixed with equal ones has the same correlations, and another divergence."""
    mixed = (0.3 * logits(1).softmax(1) + 0.7 / 4).log()
    assert dist(mixed, logits(1), LABELS, 1.0).item() == pytest.approx(0, abs=1e-5)
    assert kd(mixed, logits(1), LABELS, 1.0) > 0.1


def test_dist_correlates_the_images_of_a_class_too() -> None:
    """A share of its own for each image keeps the correlations over classes, and changes those over images."""
    shares = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])[:, None]
    mixed = (shares * logits(1).softmax(1) + (1 - shares) / 4).log()
    together, alone = dist(mixed, logits(1), LABELS, 1.0), dist(mixed[:1], logits(1)[:1], LABELS[:1], 1.0)
    assert together > 0.01
    assert alone.item() == pytest.approx(1, abs=1e-5)  # no two images: intra is 1, inter is 0


# ---- The papers' formulas ----------------------------------------------------------------------------------------


def kd_by_hand(temperature: float) -> float:
    return temperature**2 * divergence(probabilities(1, temperature), probabilities(0, temperature)).mean()


def kd_standardized_by_hand(temperature: float) -> float:
    """The standard deviation divides by K - 1, as in the authors' code."""
    soft = []
    for seed in (1, 0):
        values = logits(seed).double().numpy()
        scores = (values - values.mean(1, keepdims=True)) / values.std(1, ddof=1, keepdims=True)
        exponentials = np.exp(scores / temperature)
        soft.append(exponentials / exponentials.sum(1, keepdims=True))
    return temperature**2 * divergence(*soft).mean()


def dkd_by_hand(temperature: float) -> float:
    total = 0.0
    for image, label in enumerate(LABELS.tolist()):
        teacher, student = (probabilities(seed, temperature)[image] for seed in (1, 0))
        binary = [np.array([[p[label], 1 - p[label]]]) for p in (teacher, student)]
        others = [(np.delete(p, label) / (1 - p[label]))[None] for p in (teacher, student)]
        total += divergence(*binary).item() + 8 * divergence(*others).item()
    return temperature**2 * total / len(LABELS)


def dist_by_hand(temperature: float) -> float:
    teacher, student = probabilities(1, temperature), probabilities(0, temperature)
    images = [np.corrcoef(*rows)[0, 1] for rows in zip(teacher, student, strict=True)]
    classes = [np.corrcoef(*rows)[0, 1] for rows in zip(teacher.T, student.T, strict=True)]
    return temperature**2 * ((1 - np.mean(images)) + (1 - np.mean(classes)))


def mlkd_by_hand(temperature: float) -> float:
    """The authors' masks multiply sums over the batch; the mean over the mask's entries comes last."""
    confidence = probabilities(1, 1.0)
    images = confidence.max(1) <= np.percentile(confidence.max(1), 50)
    classes = confidence.sum(0) <= np.percentile(confidence.sum(0), 50)
    total = 0.0
    for each in (temperature / 2, 3 * temperature / 4, temperature, 5 * temperature / 4, 3 * temperature / 2):
        teacher, student = probabilities(1, each), probabilities(0, each)
        total += (kd_by_hand(each) * images).mean()
        total += (np.square(teacher @ teacher.T - student @ student.T).sum() / 6 * images).mean()
        total += (np.square(teacher.T @ teacher - student.T @ student).sum() / 4 * classes).mean()
    return total


@TEMPERATURES
@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (kd, kd_by_hand),
        (kd_standardized, kd_standardized_by_hand),
        (dkd, dkd_by_hand),
        (dist, dist_by_hand),
        (mlkd, mlkd_by_hand),
    ],
    ids=LOGIT_LOSSES,
)
def test_the_formula_by_hand(
    loss: Callable[..., Tensor], by_hand: Callable[[float], float], temperature: float
) -> None:
    assert loss(logits(0), logits(1), LABELS, temperature).item() == pytest.approx(by_hand(temperature), rel=1e-4)
