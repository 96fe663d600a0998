"""A run in which a layer stays float to keep accuracy: its records, its network, and when it is taken again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import Config
from compress.config.stage_settings import TeacherConfig
from compress.export.onnx_inspect import require_quantized
from compress.export.onnx_session import open_session
from compress.methods.restore import restore
from compress.models.artifact import write_tensors
from compress.pipeline import compute
from compress.pipeline import run as pipeline
from compress.pipeline.run import run_pipeline
from compress.tasks import CLASSIFICATION
from compress.utils.files import ONNX, SENSITIVITY, SENSITIVITY_PLOT, STAGE, digest_of_file, read_json
from tests.conftest import make_tiny_config, uncached
from tests.pipeline.test_tensorboard import hparams, tensorboard
from tests.stages.test_stages import spoil

pytestmark = pytest.mark.e2e

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mixed(finished: Path, tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A finished run whose last layer must stay float, and its settings."""
    folder = tmp_path_factory.mktemp("mixed")
    teacher = restore(finished / "01_teacher", CPU)
    spoil(teacher.network)
    write_tensors(folder / "teacher.safetensors", teacher.tensors())
    config = uncached(make_tiny_config(tiny_npz))
    config.stages = ["teacher", "quantize"]
    config.teacher = TeacherConfig(model="resnet8", checkpoint=str(folder / "teacher.safetensors"), epochs=0)
    config.quantize.mode, config.quantize.max_drop_points = "ptq", 5.0
    run_pipeline(config, folder)
    return folder, config


def test_a_layer_kept_in_float_is_in_every_record(mixed: tuple[Path, Config]) -> None:
    folder, stage = mixed[0], mixed[0] / "02_quantize"
    record, table = read_json(stage / STAGE), read_json(stage / SENSITIVITY)
    for name in (SENSITIVITY, SENSITIVITY_PLOT):
        assert record["files"][name] == digest_of_file(stage / name)
    assert read_json(stage / "model.json")["quantization"]["float_layers"] == ["linear"]
    assert [row["layer"] for row in table["layers"] if row["kept_float"]] == ["linear"]
    assert [row["layer"] for row in record["left_out"]] == ["linear"]
    assert "kept in float for accuracy" in record["left_out"][0]["reason"]
    require_quantized(stage / ONNX, ("linear",))
    teacher, last = (read_json(path / "metrics.json") for path in (folder / "01_teacher", stage))
    assert last["deployed_top1_percent"] > teacher["deployed_top1_percent"] - 10
    assert "What each layer costs as int8" in (stage / SENSITIVITY_PLOT).read_text()
    costs = tensorboard(folder, "02_quantize").Scalars("summary_by_layer/int8_kl_nats")
    assert [cost.value for cost in costs] == pytest.approx([row["kl_nats"] for row in table["layers"]])
    settings = hparams(tensorboard(folder, "stages"))
    assert {name.split(".")[0] for name in settings} >= {"teacher", "quantize"}
    assert not any(name.startswith(("prune.", "distill.")) for name in settings)  # which did not run


def test_a_mixed_network_is_restored_as_it_was_measured(mixed: tuple[Path, Config], tiny_npz: Path) -> None:
    """What was chosen on the edited file holds for the file that ships, and for the network made of model.json."""
    stage, config = mixed[0] / "02_quantize", mixed[1]
    val = compute.load_data(config.data, config.seed).val
    images = torch.cat([images for images, _ in val.batches()])
    logits = torch.from_numpy(open_session(stage / ONNX, 1).run(["logits"], {"image": images.numpy()})[0])
    assert CLASSIFICATION.score(logits, val.labels) == read_json(stage / SENSITIVITY)["chosen_top1_percent"]
    with torch.no_grad():
        first, second = (restore(stage, CPU).network(images) for _ in range(2))
    assert torch.equal(first, second)
    assert (first - logits).abs().max() < 0.1 * logits.abs().max()


def test_a_mixed_run_is_taken_as_it_is_until_the_drop_changes(mixed: tuple[Path, Config], monkeypatch) -> None:
    folder, config = mixed
    monkeypatch.setattr(pipeline, "_compute_stage", None)  # a stage that were run would fail
    run_pipeline(config, folder)
    config = replace(config, quantize=replace(config.quantize, max_drop_points=6.0))
    with pytest.raises(TypeError):
        run_pipeline(config, folder)
