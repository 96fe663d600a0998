"""Where int8 loses accuracy, the run says which setting would help, from the ranges of the channels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.config.stage_settings import QuantizeConfig
from compress.evaluation import int8_loss
from compress.evaluation.int8_loss import validation_loss
from compress.methods.quantization.advice import AccuracyDrop, advise, widest_spread

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOSS = AccuracyDrop(points=30.0, low=20.0, high=40.0, images=100, metric="top-1")


def network(times: float) -> nn.Module:
    """Two convolutions with batch norm, of which one channel in between is `times` as loud: an equal function."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        made[1].weight[3] *= times
        made[3].weight[:, 3] /= times
    return made.eval()


def test_the_loudest_channel_is_found() -> None:
    found = widest_spread(network(300), IMAGES)
    assert (found.layer, found.can_be_equalized) == ("0", True)
    assert 150 < found.times < 600
    assert widest_spread(network(1), IMAGES).times < 16


@pytest.mark.parametrize(
    ("times", "settings", "named", "unnamed"),
    [
        (300, {"mode": "ptq"}, ["of 0 reaches", "quantize.equalize=true", "max_drop_points=1"], ["mode=qat"]),
        (300, {"mode": "qat"}, ["quantize.mode=ptq quantize.equalize=true"], ["quantize.epochs"]),
        (300, {"mode": "ptq", "equalize": True}, ["max_drop_points=1"], ["equalize"]),
        (1, {"mode": "ptq"}, ["max_drop_points=1", "mode=qat"], ["reaches", "equalize"]),
        (1, {"mode": "qat", "max_drop_points": 2.0}, ["lower quantize.max_drop_points", "quantize.epochs"], ["=1"]),
    ],
)
def test_what_is_set_already_is_not_advised(times: float, settings: dict, named: list[str], unnamed: list[str]) -> None:
    text = advise(network(times), IMAGES, QuantizeConfig(**settings), LOSS)
    assert text.startswith("int8 lost 30.00 points of validation top-1 against the float network")
    assert all(part in text for part in named), text
    assert not any(part in text for part in unnamed), text


def test_the_metric_is_that_of_the_task() -> None:
    text = advise(network(1), IMAGES, QuantizeConfig(), replace(LOSS, metric="AUROC"))
    assert text.startswith("int8 lost 30.00 points of validation AUROC against the float network")


@pytest.mark.parametrize(("wrong", "told"), [(0, False), (1, False), (30, True)])
def test_a_loss_is_told_beyond_chance_only(wrong: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(60) % 3
    answers = {"float": labels, "int8": torch.cat([(labels[:wrong] + 1) % 3, labels[wrong:]])}
    monkeypatch.setattr(
        int8_loss, "onnx_runner", lambda path, threads: lambda images: [np.eye(3)[answers[path.name].numpy()]]
    )

    class Val:
        def batches(self):
            yield torch.zeros(60, 1, 2, 2), labels

        def __len__(self) -> int:
            return 60

    loss = validation_loss(Path("float"), Path("int8"), Val(), 1)
    assert (loss is not None) == told
    if loss:
        assert loss.points == pytest.approx(50)
        assert 0 < loss.low < 50 < loss.high
        assert loss.metric == "top-1"
