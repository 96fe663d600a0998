"""A network of the user's own is tried whole before it trains: each cause of a refusal has a message of its own."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig
from compress.data import load_data
from compress.export import onnx as export
from compress.methods.restore import restore
from compress.models.artifact import Artifact
from compress.models.user_model import USER_MODELS
from compress.pipeline import dry_run as trial
from compress.pipeline.dry_run import require_compressible
from compress.utils.errors import UserError
from tests import own_outputs
from tests.own_outputs import Small, WithAuxiliaryHead

ALL = ["teacher", "prune", "distill", "quantize"]
PASSED = "tried untrained, through all stages"


def attempt(config: Config, network: nn.Module, stages: list[str] = ALL, **changes: object) -> None:
    """The trial of `network` with these stages; `changes` are settings of quantize."""
    config = replace(config, stages=stages, quantize=replace(config.quantize, **changes))
    config.teacher = replace(config.teacher, factory="mine")
    USER_MODELS["mine"] = network.eval()
    try:
        require_compressible(config, load_data(config.data, config.seed))
    finally:
        del USER_MODELS["mine"]


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_a_network_with_an_auxiliary_head_passes_all_stages(
    tiny_config: Config, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        attempt(tiny_config, WithAuxiliaryHead(lambda *both: both), mode=mode)
    assert PASSED in caplog.text


REFUSED = {
    "branch": r"mine, which cannot be exported: data-dependent control flow.*\(own_outputs\.py, line \d+, in branch\)",
    "through_numpy": r"takes a tensor out of torch \(own_outputs\.py, line \d+, in through_numpy\)",
    "one_batch_size": r"works for one number of images alone.*x\.shape\[0\] in place of a number",
    "unknown_operator": r"ONNX has no form of the operator aten\.\w*linalg_svd\w* \(own_outputs\.py, line \d+\)",
    "random_in_eval": r"differ from call to call in eval mode.*if self\.training",
    "of_the_batch": r"depend on the other images of its batch",
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_cause_is_named_with_its_line(tiny_config: Config, name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        attempt(tiny_config, Small(getattr(own_outputs, name)), ["teacher"])


def test_a_line_that_only_train_mode_reaches_is_passed_by(
    tiny_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        attempt(tiny_config, Small(own_outputs.fails_in_train_mode), ["teacher"])
    assert PASSED in caplog.text


def test_a_layer_that_fails_in_train_mode_is_refused_with_its_line(tiny_config: Config) -> None:
    class Failing(nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("targets are missing")
            return x

    network = Small()
    network.head = nn.Sequential(Failing(), network.head)
    with pytest.raises(
        UserError, match=r"targets are missing in its forward pass \(test_dry_run\.py, line \d+, in forward"
    ):
        attempt(tiny_config, network, ["teacher"])


def test_most_of_the_arithmetic_in_float_is_refused_unless_it_is_allowed(
    tiny_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    network = Small(own_outputs.weight_of_the_image)
    cause = r"its weight is computed from the image in the forward pass.*quantize\.allow_float=true"
    with pytest.raises(UserError, match=r"mine, of which \d\d % of the multiply-accumulates stay float.*" + cause):
        attempt(tiny_config, network, ["teacher", "quantize"], mode="ptq")
    attempt(tiny_config, network, ["teacher", "quantize"], mode="ptq", allow_float=True)
    assert "1 layer runs in float, not int8, with" in caplog.text


def test_an_int8_file_that_the_runtime_refuses_is_found(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_names(model: export.ir.Model) -> None:
        nodes = [node for node in model.graph if node.op_type == "QuantizeLinear"]
        for node in nodes:
            node.name = "twice"

    monkeypatch.setattr(export, "name_uniquely", break_names)
    with pytest.raises(UserError, match=r"mine as an int8 file, which ONNX Runtime refuses: .*same node name"):
        attempt(tiny_config, Small(), ["teacher", "quantize"], mode="ptq")


def test_a_network_that_is_rebuilt_otherwise_is_refused(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(folder: Path, device: torch.device) -> Artifact:
        artifact = restore(folder, device)
        artifact.network.head.weight.data = artifact.network.head.weight.flip(0)
        return artifact

    monkeypatch.setattr(trial, "restore", other)
    with pytest.raises(UserError, match=r"computes something else after it is rebuilt.*register_buffer"):
        attempt(tiny_config, Small(), ["teacher"])


class Residual(nn.Module):
    """A sum whose variance grows 17 times with each block, unless batch norm has the statistics of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        nn.init.dirac_(self.convolution.weight)
        nn.init.constant_(self.norm.weight, 4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.convolution(x))


def test_losses_of_layers_do_not_overflow_on_a_deep_network_that_was_never_trained(
    tiny_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """float32 cannot hold the squares of its outputs, until the one step of the teacher has moved batch norm."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), *(Residual() for _ in range(40)), head)
    assert network.eval()(torch.ones(1, 1, 8, 8)).abs().max() > 1e20
    config = replace(tiny_config, distill=DistillConfig(losses=["kd", "at", "rkd", "review"], epochs=1))
    with caplog.at_level(logging.INFO):
        attempt(config, network, ["teacher", "distill"])
    assert PASSED in caplog.text


def test_that_nothing_can_be_pruned_is_said(tiny_config: Config, caplog: pytest.LogCaptureFixture) -> None:
    tiny_config.prune.round_to = 64
    attempt(tiny_config, Small(), ["teacher", "prune"])
    assert "no layer of mine loses a filter, so prune changes nothing" in caplog.text
    assert "steps of 64" in caplog.text
