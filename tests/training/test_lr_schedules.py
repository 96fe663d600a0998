"""The learning-rate schedules: their rates by hand, and as a training takes and records them."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from compress.config.schema import Config, TrainConfig
from compress.config.stage_settings import SCHEDULES
from compress.data import load_data
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.lr_schedules import lr_factor
from compress.training.tensorboard import TensorBoardWriter


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_rises_to_its_peak_and_never_again(schedule: str) -> None:
    factors = [lr_factor(step, 100, 0.1, schedule) for step in range(101)]
    assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert factors[10] == 1
    assert all(0 <= after <= before for before, after in pairwise(factors[10:]))


# Of 100 steps after a rise of 10, so that 90 are left: a third of them is over at step 40, half at 55.
@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", {40: 0.75, 55: 0.5, 70: 0.25, 100: 0}),
        ("linear", {40: 2 / 3, 55: 0.5, 70: 1 / 3, 99: 1 / 90, 100: 0}),
        ("step", {54: 1, 55: 0.1, 77: 0.1, 78: 0.01, 100: 0.01}),
        ("constant", {40: 1, 100: 1}),
    ],
)
def test_the_rates_of_a_few_steps(schedule: str, factors: dict[int, float]) -> None:
    assert {step: lr_factor(step, 100, 0.1, schedule) for step in factors} == pytest.approx(factors, abs=1e-12)


def test_the_step_schedule_falls_where_it_was_published() -> None:
    """After 32,000 and 48,000 of 64,000 steps (He et al. 2016, section 4.2)."""
    falls = [
        step for step in range(1, 64001) if lr_factor(step, 64000, 0, "step") < lr_factor(step - 1, 64000, 0, "step")
    ]
    assert falls == [32000, 48000]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_of_one_step_takes_the_peak_rate(schedule: str) -> None:
    assert lr_factor(0, 1, 0.0, schedule) == 1


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", [0.5, 1, 1, *[0.5 * (1 + math.cos(math.pi * step / 7)) for step in range(1, 7)]]),
        ("linear", [0.5, 1, *[1 - step / 7 for step in range(7)]]),
        ("step", [0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01]),
        ("constant", [0.5, *[1] * 8]),
    ],
)
def test_a_training_takes_the_rates_that_its_curve_shows(
    tiny_config: Config, tmp_path: Path, schedule: str, factors: list[float]
) -> None:
    """Nine steps, the first two of which are the rise; a gradient of 1 moves the weight by the rate."""

    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight.expand(len(x), 3)

    seen = []

    def loss(network, examples):
        seen.append(network.weight[0].item())
        logits = network(examples.images)
        return logits.mean(0).sum(), logits

    data, network = load_data(tiny_config.data, 0), Weight()
    with TensorBoardWriter(tmp_path) as curves:
        config = TrainConfig(momentum=0.0, warmup=0.2)
        context = Context(data, None, config, torch.device("cpu"), 1, curves)
        train(network, loss, context, TrainSettings("test", 3, 0.05, schedule=schedule))
    assert len(seen) == 9
    rates = [before - after for before, after in pairwise([*seen, network.weight[0].item()])]
    assert rates == pytest.approx([0.05 * factor for factor in factors], abs=1e-7)
    curve = EventAccumulator(str(tmp_path)).Reload().Scalars("step/learning_rate")
    assert [row.step for row in curve] == list(range(9))
    assert [row.value for row in curve] == pytest.approx(rates, abs=1e-7)
