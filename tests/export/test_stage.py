"""A stage with further targets: scored in the same pass as model.onnx, and asked for later without any training."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress.config.schema import Config
from compress.data import load_data
from compress.methods.restore import restore, restore_float
from compress.models.artifact import read_tensors
from compress.pipeline import compute, stage_runner
from compress.pipeline import run as pipeline
from compress.pipeline.run import run_pipeline
from compress.utils.files import METRICS, MODEL, ONNX, PREDICTIONS, STAGE, digest_of_file, read_json
from tests.conftest import make_tiny_config

from .conftest import need_extra

pytestmark = pytest.mark.e2e

FOLDERS = ["01_teacher", "02_quantize"]
FILES = {"executorch": {"model.pte"}, "openvino": {"model.xml", "model.bin"}}


def config_for(npz: Path, *targets: str) -> Config:
    config = make_tiny_config(npz)
    config.stages, config.export.targets = ["teacher", "quantize"], ["onnx", *targets]
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> Path:
    """A run for ONNX Runtime alone."""
    folder = tmp_path_factory.mktemp("run")
    run_pipeline(config_for(tiny_npz), folder)
    return folder


@pytest.fixture(scope="module", params=FILES)
def widened(request, trained: Path, tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same run, asked for one more target; how often its test images were read."""
    need_extra(request.param)
    folder, reads = tmp_path_factory.mktemp(request.param) / "run", []
    shutil.copytree(trained, folder)
    load_data = compute.load_data

    def counted(*arguments):
        data = load_data(*arguments)
        batches = data.test.batches
        data.test.batches = lambda: reads.append(1) or batches()
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "load_data", counted)
        patch.setattr(pipeline, "_compute_stage", None)  # a stage that were trained would fail
        run_pipeline(config_for(tiny_npz, request.param), folder)
    return SimpleNamespace(folder=folder, name=request.param, reads=len(reads))


def test_another_target_is_written_without_training(widened: SimpleNamespace, trained: Path) -> None:
    for stage in FOLDERS:
        found = {path.name for path in (widened.folder / stage).iterdir()}
        assert found == {path.name for path in (trained / stage).iterdir()} | FILES[widened.name]
        assert set(read_json(widened.folder / stage / STAGE)["files"]) == found - {STAGE}
        for kept in (MODEL, ONNX):
            assert digest_of_file(widened.folder / stage / kept) == digest_of_file(trained / stage / kept)
    assert not list(widened.folder.glob("*.anew"))


def test_the_test_split_is_read_once_a_stage(widened: SimpleNamespace) -> None:
    assert widened.reads == len(FOLDERS)


@pytest.mark.parametrize("stage", FOLDERS)
def test_a_target_is_scored_like_the_onnx_file(widened: SimpleNamespace, stage: str) -> None:
    folder = widened.folder / stage
    metrics, found = read_json(folder / METRICS), read_tensors(folder / PREDICTIONS)
    record = metrics["targets"][widened.name]
    own = found[f"{widened.name}_top1"]
    assert record["top1_percent"] == pytest.approx(100 * (own == found["labels"]).double().mean().item())
    assert record["agreement_percent"] == pytest.approx(100 * (own == found["top1"]).double().mean().item())
    assert record["agreement_percent"] >= 95
    assert record["size_bytes"] == sum((folder / name).stat().st_size for name in FILES[widened.name])
    assert record["input_shape"][1:] == [1, 8, 8]
    assert 0 < record["latency_ms_p50"] <= record["latency_ms_p95"]
    assert record["speedup_vs_onnx"] > 0


def test_an_unchanged_list_of_targets_is_taken_as_it_is(
    widened: SimpleNamespace, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pipeline, "_compute_stage", None)
    monkeypatch.setattr(stage_runner, "reexport_stage", None)
    run_pipeline(config_for(tiny_npz, widened.name), widened.folder)
    assert f"02_quantize in {widened.name}: " in capsys.readouterr().out


def test_a_target_that_is_no_longer_asked_for_goes(trained: Path, tiny_npz: Path, tmp_path: Path) -> None:
    """As if an earlier run had written it: a file in the folder, and its name in the settings.

    What the first computation took stays, were it taken or not.
    """
    folder = shutil.copytree(trained, tmp_path / "run")
    config = config_for(tiny_npz)
    config.stages = ["teacher"]
    record = read_json(folder / FOLDERS[0] / STAGE)
    record["conditions"]["export"]["targets"].append("openvino")
    (folder / FOLDERS[0] / "model.xml").write_text("<net/>")
    metrics = read_json(folder / FOLDERS[0] / METRICS)
    taken = {"training_energy_kwh_estimate": 0.5, "training_co2_kg_estimate": None}
    metrics["unavailable"]["training_co2_kg_estimate"] = "of old"
    pipeline.files.write_json(folder / FOLDERS[0] / METRICS, metrics | taken)
    pipeline.files.finish_stage(folder / FOLDERS[0], record)
    run_pipeline(config, folder)
    assert not (folder / FOLDERS[0] / "model.xml").exists()
    found = read_json(folder / FOLDERS[0] / METRICS)
    assert found["targets"] == {}
    assert {name: found[name] for name in taken} == taken
    assert found["unavailable"]["training_co2_kg_estimate"] == "of old"
    assert "training_energy_kwh_estimate" not in found["unavailable"]


def test_the_float_network_of_a_quantized_stage_is_what_was_rounded(trained: Path, tiny_npz: Path) -> None:
    """Near the int8 network, but for the rounding; of a float stage the very network."""
    images = torch.cat([images for images, _ in load_data(config_for(tiny_npz).data, 0).val.batches()])
    with torch.no_grad():
        rounded = restore(trained / "02_quantize", torch.device("cpu")).network(images)
        found = restore_float(trained / "02_quantize")(images)
        assert 0 < (found - rounded).abs().max() < 0.1 * rounded.abs().max()
        teacher = restore(trained / "01_teacher", torch.device("cpu")).network(images)
        assert torch.allclose(restore_float(trained / "01_teacher")(images), teacher, atol=1e-5)
