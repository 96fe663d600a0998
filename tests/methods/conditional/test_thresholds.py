"""The choice of thresholds: calibrated, one confidence for all exits, and within the limit."""

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
def test_the_confidence_is_the_lowest_before_too_much_is_lost(points: float, seed: int) -> None:
    """Against all confidences, one after the other from above."""
    ends, labels = drawn(40, (2.0, 3.0, 5.0), seed)
    choice = choose(ends, labels, MACS, points)
    confidences = [confidence(logits, at) for logits, at in zip(ends, choice.temperatures, strict=False)]
    least = int((ends[-1].argmax(1) == labels).sum()) - int(points / 100 * 40 + 1e-9)
    last = torch.full((40,), 2)
    for level in sorted(torch.cat(confidences).double().tolist(), reverse=True):
        where = leaves(confidences, [level - 1e-9] * 2)
        if cost_and_right(ends, labels, where, MACS)[1] < least:
            break
        last = where
    assert torch.equal(choice.leaves, last)
    assert len(set(choice.thresholds)) == 1


def test_one_confidence_keeps_the_limit_on_other_images() -> None:
    drops = []
    for seed in range(12):
        ends, labels = drawn(400, (2.0, 3.0, 5.0), seed)
        chosen = choose([logits[:200] for logits in ends], labels[:200], MACS, 1.0)
        others = [logits[200:] for logits in ends]
        confidences = [confidence(logits, at) for logits, at in zip(others, chosen.temperatures, strict=False)]
        where = leaves(confidences, chosen.thresholds)
        _, right = cost_and_right(others, labels[200:], where, MACS)
        drops.append(100 * (int((others[-1].argmax(1) == labels[200:]).sum()) - right) / 200)
    assert sum(drops) / len(drops) < 2.0


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
