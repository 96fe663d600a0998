"""The choice of thresholds: calibrated, within the limit, and as cheap as the best of all combinations."""

import itertools

import pytest
import torch
from torch import Tensor

from compress.methods.conditional.thresholds import choose, confidence, leaves
from compress.tasks.calibration import fit_temperature
from compress.utils.exit_names import NEVER

MACS = [40, 75, 110]


def drawn(count: int, strengths: tuple[float, ...], seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Logits (N, 5) of each end, better the stronger, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, 5).float()
    hard = torch.rand(count, 1, generator=generator)
    noise = lambda: torch.randn(count, 5, generator=generator)
    return [strength * (1.5 - hard) * truth + noise() for strength in strengths], labels


def cost_and_right(ends: list[Tensor], labels: Tensor, where: Tensor, macs: list[int]) -> tuple[float, int]:
    chosen = torch.stack(ends)[where, torch.arange(len(labels))]
    return float(torch.tensor(macs)[where].sum()), int((chosen.argmax(1) == labels).sum())


@pytest.mark.parametrize("temperature", [0.25, 1.0, 6.0])
def test_the_temperature_of_logits_that_were_drawn_from_is_found(temperature: float) -> None:
    logits = 2 * torch.randn(20000, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_confidence_is_then_how_often_it_is_right() -> None:
    (logits, _), labels = drawn(20000, (2.0, 6.0))
    sure = confidence(5 * logits, fit_temperature(5 * logits, labels))
    assert sure.mean().item() == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=0.01)


@pytest.mark.parametrize("points", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_other_thresholds_are_cheaper_within_the_limit(points: float, seed: int) -> None:
    """Against all pairs of thresholds, between any two neighbours among the confidences."""
    ends, labels = drawn(40, (2.0, 3.0, 5.0), seed)
    choice = choose(ends, labels, MACS, points)
    confidences = [confidence(logits, at) for logits, at in zip(ends, choice.temperatures, strict=False)]
    cost, right = cost_and_right(ends, labels, choice.leaves, MACS)
    least = int((ends[-1].argmax(1) == labels).sum()) - int(points / 100 * 40 + 1e-9)
    assert right >= least
    candidates = [[NEVER, *values.double().sub(1e-9).tolist()] for values in confidences]
    found = [cost_and_right(ends, labels, leaves(confidences, pair), MACS) for pair in itertools.product(*candidates)]
    assert cost == min(own for own, kept in found if kept >= least)


@pytest.mark.parametrize("exits", [1, 3, 4])
def test_any_number_of_exits_keeps_the_limit(exits: int) -> None:
    ends, labels = drawn(300, (*torch.linspace(2, 3, exits).tolist(), 5.0))
    macs = [10 * (at + 1) for at in range(exits)] + [100]
    choice = choose(ends, labels, macs, 2.0)
    cost, right = cost_and_right(ends, labels, choice.leaves, macs)
    assert right >= int((ends[-1].argmax(1) == labels).sum()) - 6
    assert cost < 100 * 300
    confidences = [confidence(logits, at) for logits, at in zip(ends, choice.temperatures, strict=False)]
    thresholds = torch.tensor(choice.thresholds)  # float32, as the network holds them
    assert torch.equal(leaves(confidences, thresholds.tolist()), choice.leaves)


def test_nobody_leaves_an_exit_that_is_always_wrong() -> None:
    ends, labels = drawn(100, (2.0, 8.0))
    wrong = torch.nn.functional.one_hot((labels + 1) % 5, 5).float() * 10
    choice = choose([wrong, ends[1]], labels, [10, 20], 0.0)
    assert choice.thresholds == [NEVER]
    assert (choice.leaves == 1).all()


def test_equal_confidences_leave_together() -> None:
    """Of ten images with one confidence at most one may be wrong, and two are: none leaves."""
    labels = torch.zeros(10, dtype=torch.int64)
    logits = torch.tensor([[2.0, 0.0]] * 8 + [[0.0, 2.0]] * 2)
    end = torch.tensor([[2.0, 0.0]] * 10)
    assert choose([logits, end], labels, [1, 2], 10.0).thresholds == [NEVER]
    assert (choose([logits, end], labels, [1, 2], 20.0).leaves == 0).all()
