"""The losses: what must hold for any logits, then figures worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.methods.distillation.losses import distillation, record_outputs, relative_error
from compress.tasks import CLASSIFICATION
from compress.utils.errors import UserError


def softened_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The mean distance of a classifier's outputs."""
    return CLASSIFICATION.distance(logits, teacher_logits, temperature).mean()


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_of_equal_logits_is_zero(temperature: float) -> None:
    assert softened_kl(logits(0), logits(0), temperature).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_positive_and_blind_to_a_shift(temperature: float) -> None:
    value = softened_kl(logits(0), logits(1), temperature)
    assert value > 0
    assert softened_kl(logits(0) + 7, logits(1) - 2, temperature).item() == pytest.approx(value.item(), rel=1e-5)


def test_alpha_zero_is_cross_entropy() -> None:
    assert torch.equal(distillation(logits(0), logits(1), LABELS, 4.0, 0.0), F.cross_entropy(logits(0), LABELS))


def test_figure_worked_out_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(kl, rel=1e-5)
    mixed = distillation(student, 2 * teacher, torch.tensor([0]), 2.0, 0.9)
    assert mixed.item() == pytest.approx(0.9 * 4 * kl + 0.1 * math.log(2), rel=1e-5)


GOLDEN = 6.30329  # of seeds 0 and 1, T = 4, alpha = 0.9; the same in NumPy and SciPy, in double precision


def test_golden_figure() -> None:
    assert distillation(logits(0), logits(1), LABELS, 4.0, 0.9).item() == pytest.approx(GOLDEN, rel=1e-4)


def test_gradients_keep_their_size_as_the_temperature_grows() -> None:
    sizes = []
    for temperature in (20.0, 40.0):
        student = logits(0).requires_grad_()
        distillation(student, logits(1), LABELS, temperature, 1.0).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_relative_error_is_one_for_the_mean_and_blind_to_scale() -> None:
    features = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = features.mean().expand_as(features)
    assert relative_error(mean, features).item() == pytest.approx(1, rel=0.01)
    assert relative_error(5 * mean, 5 * features).item() == pytest.approx(
        relative_error(mean, features).item(), rel=1e-4
    )


def test_an_unknown_hint_layer_is_refused() -> None:
    with (
        pytest.raises(UserError, match=r"distill\.hint_layers with nope"),
        record_outputs(nn.Sequential(nn.ReLU()), ["nope"]),
    ):
        pass
