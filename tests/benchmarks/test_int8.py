"""The int8 benchmark's own arithmetic and its processes; what it measures on real networks is run by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from compress.export.onnx import export_onnx
from tests.benchmarks.contenders import FLOAT, OURS, Contender, ImageReader
from tests.benchmarks.int8 import best_settings, compare
from tests.benchmarks.networks import pad_as_tensorflow
from tests.benchmarks.racing import race, ratio_of_medians, start_racer
from tests.benchmarks.report import Result, Score, goals, table


def contender(tool: str, form: str = "", setting: str = "") -> Contender:
    return Contender(tool, form, setting, "onnxruntime", Path(f"{tool}{form}{setting}.onnx"))


def score(agreement: float, delta: float = 0.0, interval: tuple[float, float] = (-0.2, 0.2)) -> Score:
    return Score(90.0, agreement, delta, interval)


def test_a_ratio_of_medians_is_that_and_noise_common_to_a_round_leaves_its_interval_narrow() -> None:
    noise = np.random.default_rng(0).uniform(1, 10, 40)
    ratio, (low, high) = ratio_of_medians(list(2 * noise), list(noise))
    assert ratio == low == high == pytest.approx(2)
    ratio, (low, high) = ratio_of_medians(list(2 * noise), list(noise[::-1]))
    assert ratio == pytest.approx(2)
    assert low < 1.8 < 2.2 < high


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="received 2 and 1 rounds"):
        ratio_of_medians([1.0, 2.0], [1.0])


def test_accuracy_is_compared_image_by_image_with_the_float_network() -> None:
    labels = np.array([0, 1, 2, 3])
    float_network, other = contender(FLOAT), contender("peer")
    scores = compare({float_network: np.array([0, 1, 2, 0]), other: np.array([0, 1, 0, 3])}, labels)
    assert scores[float_network].agreement_percent == 100
    assert (scores[other].top1_percent, scores[other].agreement_percent) == (75, 50)
    assert scores[other].delta_points == 0  # one image gained, one lost


def test_a_peer_races_with_the_setting_that_agrees_best_in_each_form() -> None:
    scores = {
        contender("peer", "QDQ", "a"): score(98.0),
        contender("peer", "QDQ", "b"): score(99.0),
        contender("peer", "QOperator", "a"): score(97.0),
        contender(OURS): score(96.0),
    }
    assert [who.name for who in best_settings(scores)] == ["peer, QDQ, b", "peer, QOperator, a", OURS]


def raced(own_ms: float, agreement: float, interval: tuple[float, float]) -> Result:
    slow, fast, own = contender("peer", "slow"), contender("peer", "fast"), contender(OURS)
    scores = {slow: score(99.0), fast: score(99.0), own: score(agreement, -1.0, interval)}
    times = {slow: [4.0] * 5, fast: [2.0] * 5, own: [own_ms] * 5}
    return Result("resnet56", 1017, 512, scores, {"absent": "no package"}, {(1, 1): times, (1, 32): times})


def test_the_table_has_a_row_a_tool_and_ratios_to_the_fastest_peer() -> None:
    lines = list(table(raced(1.0, 99.6, (-2.0, 0.1))))
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| peer, fast", f"| {OURS}"]
    assert lines[3].endswith("| -1.00 (-2.00 to +0.10) | 99.60 | 1.00 (0.50x) | 32000 (2.00x) |")
    assert {line.count("|") for line in lines[:4]} == {7}
    assert lines[-1] == "Left out: absent: no package."


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (raced(2.0, 99.5, (-2.0, 0.0)), ["reached", "reached", "reached"]),
        (raced(2.1, 99.3, (-2.0, -0.3)), ["missed by 0.05", "missed by 0.20", "missed by 0.30"]),
    ],
)
def test_a_goal_tells_by_how_much_it_was_missed(found: Result, verdicts: list[str]) -> None:
    assert [goal.split(": ")[-1] for goal in goals(found)] == verdicts


def test_calibration_images_are_read_once_each_in_strides() -> None:
    images = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
    reader, seen = ImageReader(images), []
    for start in range(0, len(reader), 4):
        reader.set_range(start, start + 4)
        while (feed := reader.get_next()) is not None:
            assert feed["image"].shape == (1, 1, 1, 1)
            seen.append(feed["image"].item())
    assert seen == list(range(8))


def test_tensorflows_padding_sees_one_more_row_below_and_none_above() -> None:
    block = nn.Sequential(layer := Conv2dNormActivation(1, 1, 3, 2))
    pad_as_tensorflow(block)
    with torch.no_grad():
        layer[0][1].weight.fill_(1)
        assert layer[0](torch.ones(1, 1, 4, 4)).flatten().tolist() == [9, 6, 6, 4]


def test_racers_take_turns_rest_between_them_and_predict_what_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    images = torch.randn(7, 1, 8, 8)
    np.save(tmp_path / "images.npy", images.numpy())
    export_onnx(network, tmp_path / "model.onnx", (1, 8, 8))
    job = {
        "runtime": "onnxruntime",
        "path": str(tmp_path / "model.onnx"),
        "images": str(tmp_path / "images.npy"),
        "threads": 1,
        "batch": 4,
    }
    with start_racer("one", job, tmp_path) as one, start_racer("other", job, tmp_path) as other:
        race([one, other], rounds=3, seed=0)
        one.ask(task="predict", to=str(tmp_path / "logits.npy"))
    assert [len(racer.turns_ms) for racer in (one, other)] == [3, 3]
    assert all(milliseconds > 0 for milliseconds in one.turns_ms)
    assert one.waited_cpu_s < 0.5 * one.waited_s
    with torch.no_grad():
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), network(images).numpy(), atol=1e-5)


def test_a_racer_that_cannot_run_is_an_error_with_its_cause(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 8, 8), np.float32))
    job = {
        "runtime": "onnxruntime",
        "path": "no.onnx",
        "images": str(tmp_path / "images.npy"),
        "threads": 1,
        "batch": 1,
    }
    with (
        pytest.raises(RuntimeError, match=r"the process of broken ended with 1(.|\n)*no\.onnx"),
        start_racer("broken", job, tmp_path) as racer,
    ):
        race([racer], rounds=1, seed=0)
