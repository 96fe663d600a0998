"""A finished stage is taken for the network that made it alone, also where no key could tell the two apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import Config
from compress.pipeline.run import run_pipeline
from compress.utils.errors import UserError
from compress.utils.files import MODEL, OUTPUTS, STAGE, finish_stage, read_json
from tests.conftest import uncached
from tests.own_networks import Plain


@pytest.fixture
def config(tiny_config: Config) -> Config:
    tiny_config.teacher = replace(tiny_config.teacher, factory="tests.own_networks:plain", epochs=0)
    tiny_config.stages = ["teacher"]
    return uncached(tiny_config)


def test_a_change_that_no_key_holds_ends_the_run(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.models.user_model.identity", lambda name, shape: {})
    run_pipeline(config, tmp_path)
    before = (tmp_path / "01_teacher" / MODEL).stat().st_mtime_ns
    run_pipeline(config, tmp_path)
    assert (tmp_path / "01_teacher" / MODEL).stat().st_mtime_ns == before  # taken
    with monkeypatch.context() as patch:
        forward = Plain.forward
        patch.setattr(Plain, "forward", lambda network, x: forward(network, torch.tanh(x)))
        with pytest.raises(UserError, match=r"01_teacher, from which a network is rebuilt whose outputs .* differ"):
            run_pipeline(config, tmp_path)
        stage = tmp_path / "01_teacher"
        record = {key: value for key, value in read_json(stage / STAGE).items() if key not in ("files", "digest")}
        (stage / OUTPUTS).unlink()
        finish_stage(stage, record)  # as an earlier version wrote it: there is nothing to compare
        run_pipeline(config, tmp_path)


def test_a_changed_network_is_computed_anew(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run_pipeline(config, tmp_path)
    key = read_json(tmp_path / "01_teacher" / STAGE)["key"]
    forward = Plain.forward
    monkeypatch.setattr(Plain, "forward", lambda network, x: forward(network, torch.tanh(x)))
    run_pipeline(config, tmp_path)
    assert read_json(tmp_path / "01_teacher" / STAGE)["key"] != key


def test_a_frozen_network_is_taken_as_it_is_and_not_trained_without_a_word(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("tests.own_networks.plain", lambda num_classes, in_channels: frozen(num_classes, in_channels))
    run_pipeline(config, tmp_path)
    notes = read_json(tmp_path / "01_teacher" / STAGE)["notes"]
    assert "head.weight" in notes["frozen_parameters"]
    assert "are frozen (requires_grad=False)" in caplog.text
    config.teacher.epochs = 1
    with pytest.raises(UserError, match=r"teacher\.epochs=1 .* all frozen .*teacher\.epochs=0"):
        run_pipeline(config, tmp_path)


def frozen(num_classes: int, in_channels: int) -> Plain:
    torch.manual_seed(0)
    return Plain(num_classes, in_channels).requires_grad_(False)
