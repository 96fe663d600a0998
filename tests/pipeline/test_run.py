"""The chain as a whole: every file is there and true, stages compose, and nothing half-written is trusted."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.config.schema import Config
from compress.data import load_data
from compress.evaluation.inference import onnx_runner
from compress.export.onnx_session import open_session
from compress.methods.restore import restore
from compress.pipeline import compute, stage_runner
from compress.pipeline import run as pipeline
from compress.pipeline.run import run_pipeline
from compress.stages import STAGES, check_order
from compress.utils.errors import UserError
from compress.utils.files import MODEL, ONNX, STAGE, digest_of_file, read_json
from tests.conftest import make_tiny_config, uncached
from tests.data.test_data import image_folder

pytestmark = pytest.mark.e2e

FOLDERS = ["01_teacher", "02_prune", "03_distill", "04_quantize"]
CPU = torch.device("cpu")


def weights(folder: Path) -> dict[str, str]:
    return {name: digest_of_file(folder / name / MODEL) for name in FOLDERS}


def test_every_stage_leaves_the_files_of_the_contract(finished: Path) -> None:
    for name in FOLDERS:
        found = {path.name for path in (finished / name).iterdir()}
        assert found >= {"model.safetensors", "model.json", "model.onnx", "metrics.json", "stage.json"}
        assert "profile.json" in found
        assert ("examples.safetensors" in found) == (name != "01_teacher")  # which differs from nobody
        assert not any(part.endswith((".part", ".pkl", ".pt", ".pth")) for part in found)
        assert any((finished / "tensorboard" / name).iterdir())
    assert [row["stage"] for row in read_json(finished / "summary.json")["stages"]] == FOLDERS


def test_metrics_have_every_figure_of_the_contract(finished: Path) -> None:
    keys = {
        *("top1_percent", "top1_ci95_percent", "top5_percent", "loss", "images"),
        *("deployed_top1_percent", "deployed_agreement_percent"),
        *("teacher_agreement_percent", "top1_delta_points", "top1_delta_ci95_points"),
        *("deployed_val_top1_percent", "deployed_val_delta_points", "val_images"),
        *("params", "macs", "size_bytes"),
        *("latency_ms_p50", "latency_ms_p95", "throughput_images_per_s"),
        *("peak_memory_bytes", "energy_joule_per_image", "environment"),
        *("estimated_energy_mj_per_image", "training_energy_kwh_estimate", "training_co2_kg_estimate"),
        *("cuda_latency_ms_p50", "cuda_latency_ms_p95", "cuda_peak_memory_bytes"),
    }
    for name in FOLDERS:
        metrics = read_json(finished / name / "metrics.json")
        assert keys <= set(metrics)
        nulls = {key for key, value in metrics.items() if value is None}
        assert nulls == set(metrics["unavailable"])
        assert all(isinstance(cause, str) and cause for cause in metrics["unavailable"].values())
        assert ("mcnemar_p_value" in nulls) == (name == "01_teacher")  # which is compared to itself
        assert metrics["images"] == 45
        assert metrics["size_bytes"] == (finished / name / ONNX).stat().st_size
        assert 0 < metrics["latency_ms_p50"] <= metrics["latency_ms_p95"]
        assert metrics["peak_memory_bytes"] > 10_000_000
        assert metrics["environment"]["versions"]["torch"] == torch.__version__


def test_validation_figures_are_of_the_file_on_the_validation_split(finished: Path, tiny_config: Config) -> None:
    """The file's training rows would not do: a search chooses by these, and keeps the test images unseen."""
    val = load_data(tiny_config.data, tiny_config.seed).val
    batches = list(val.batches())
    percents = []
    for name in FOLDERS:
        run = onnx_runner(finished / name / ONNX, 1)
        right = sum((run(images.numpy())[0].argmax(1) == labels.numpy()).sum() for images, labels in batches)
        metrics = read_json(finished / name / "metrics.json")
        percents.append(metrics["deployed_val_top1_percent"])
        assert metrics["val_images"] == len(val) == 24
        assert percents[-1] == pytest.approx(100 * right / len(val))
        assert metrics["deployed_val_delta_points"] == pytest.approx(percents[-1] - percents[0])


def test_the_pipeline_compresses(finished: Path) -> None:
    teacher, prune, distill, quantize = (read_json(finished / name / "metrics.json") for name in FOLDERS)
    assert teacher["top1_percent"] > 90
    assert teacher["macs"] > 1.5 * prune["macs"]
    assert prune["macs"] == distill["macs"] == quantize["macs"]
    assert prune["size_bytes"] < teacher["size_bytes"]
    assert quantize["size_bytes"] < distill["size_bytes"]
    assert quantize["deployed_top1_percent"] > 85


def test_stage_json_tells_how_to_repeat_it(finished: Path) -> None:
    record = read_json(finished / "02_prune" / STAGE)
    assert record["config"]["prune"]["ratio"] == 0.5
    assert record["config"]["seed"] == 0
    assert record["inputs"]["data_fingerprint"]
    assert record["inputs"]["parent"][MODEL] == digest_of_file(finished / "01_teacher" / MODEL)
    assert record["duration_s"] > 0
    assert {row["layer"] for row in record["left_out"]} >= {"conv1", "linear"}


def test_model_json_says_how_to_feed_the_file(finished: Path) -> None:
    spec = read_json(finished / "04_quantize" / "model.json")
    assert spec["classes"] == ["0", "1", "2"]
    assert spec["input"]["shape"] == [1, 8, 8]
    assert spec["input"]["range"] == [0, 1]
    assert spec["input"]["layout"] == "NCHW"
    assert len(spec["input"]["mean"]) == len(spec["input"]["std"]) == 1
    assert spec["quantization"]["mode"] == "qat"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_exported_file_gives_the_restored_networks_logits(finished: Path, name: str) -> None:
    """Float: within 1e-4. Int8: torch rounds in float, the runtime in integers, so an output may be a step off."""
    network = restore(finished / name, CPU).network
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(images)
    found = torch.from_numpy(open_session(finished / name / ONNX, 1).run(["logits"], {"image": images.numpy()})[0])
    scale = wanted.abs().max().item()
    assert (found - wanted).abs().max().item() < (0.1 if name == "04_quantize" else 1e-4) * scale


@pytest.mark.parametrize("name", FOLDERS)
def test_a_restored_network_is_the_same_each_time(finished: Path, name: str) -> None:
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        first, second = (restore(finished / name, CPU).network(images) for _ in range(2))
    assert torch.equal(first, second)


def test_the_int8_file_holds_int8_weights_between_q_and_dq(finished: Path) -> None:
    graph = onnx.load(finished / "04_quantize" / ONNX).graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 8
    for layer in layers:
        image, weight = (makers[name] for name in layer.input[:2])
        assert image.op_type == weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].data_type == onnx.TensorProto.INT8
    assert graph.input[0].name == "image"
    assert graph.output[0].name == "logits"


def test_two_runs_with_one_seed_are_one(finished: Path, tiny_npz: Path, tmp_path: Path) -> None:
    run_pipeline(uncached(make_tiny_config(tiny_npz)), tmp_path)
    assert weights(tmp_path) == weights(finished)
    for name in FOLDERS:
        assert digest_of_file(tmp_path / name / ONNX) == digest_of_file(finished / name / ONNX)


def test_another_seed_is_another_network(finished: Path, tiny_npz: Path, tmp_path: Path) -> None:
    config = make_tiny_config(tiny_npz)
    config.seed, config.stages = 1, ["teacher"]
    run_pipeline(config, tmp_path)
    assert digest_of_file(tmp_path / "01_teacher" / MODEL) != weights(finished)["01_teacher"]


def test_a_finished_run_is_taken_as_it_is(finished: Path, tiny_npz: Path, tmp_path: Path, monkeypatch) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(pipeline, "_compute_stage", None)  # a stage that were run would fail
    summary = run_pipeline(make_tiny_config(tiny_npz), folder)
    assert summary == read_json(finished / "summary.json")


@pytest.mark.parametrize(("change", "kept"), [("data", 0), ("prune", 1), ("distill", 2), ("quantize", 3)])
def test_other_settings_run_that_stage_and_all_after_it(
    finished: Path, tiny_npz: Path, tmp_path: Path, monkeypatch, change: str, kept: int
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    config = uncached(make_tiny_config(tiny_npz))
    setting = {"data": "crop_padding", "prune": "ratio", "distill": "alpha", "quantize": "alpha"}[change]
    setattr(getattr(config, change), setting, 0 if change == "data" else 0.25)
    ran = []
    monkeypatch.setattr(pipeline, "_compute_stage", lambda name, *rest: ran.append(name) or stop())

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run_pipeline(config, folder)
    assert ran == [config.stages[kept]]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_damaged_stage_is_computed_again_and_ends_the_same(
    finished: Path, tiny_npz: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / name / MODEL
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    run_pipeline(uncached(make_tiny_config(tiny_npz)), folder)
    assert weights(folder) == weights(finished)


def test_the_test_split_is_read_once_a_stage(tiny_npz: Path, tmp_path: Path, monkeypatch) -> None:
    reads = []
    original = compute.load_data

    def counted(*arguments):
        data = original(*arguments)
        batches = data.test.batches
        monkeypatch.setattr(data.test, "batches", lambda: reads.append(1) or batches(), raising=False)
        return data

    monkeypatch.setattr(compute, "load_data", counted)
    config = uncached(make_tiny_config(tiny_npz))
    config.stages = ["teacher", "prune"]
    run_pipeline(config, tmp_path)
    assert len(reads) == 2


ORDERS = [
    ["teacher"],
    *(["teacher", second] for second in ("prune", "distill", "quantize")),
    ["teacher", "distill", "prune", "quantize"],
    ["teacher", "factorize", "prune", "distill", "dynamic_width"],
    ["teacher", "distill", "factorize", "quantize"],
    ["teacher", "early_exit"],
    *(["teacher", second, "early_exit"] for second in ("prune", "factorize")),
    *(["teacher", second, "dynamic_width"] for second in ("prune", "factorize")),
]
# The run of most tests here, and that of tests/stages/test_dynamic_width.py.
ELSEWHERE = [["teacher", "prune", "distill", "quantize"], ["teacher", "dynamic_width", "quantize"]]
EXITS = ("early_exit", "dynamic_width")  # one of them at most, and only quantize after it
# search_architecture needs a target: tests/stages/test_search_architecture.py runs it.
PAIRED = [name for name in STAGES if name != "search_architecture"]


@pytest.mark.parametrize("stages", ORDERS, ids="-".join)
def test_every_pair_of_stages_composes(tiny_npz: Path, tmp_path: Path, stages: list[str]) -> None:
    config = make_tiny_config(tiny_npz)
    config.stages, config.quantize.mode = stages, "ptq"
    summary = run_pipeline(config, tmp_path)
    assert [row["stage"][3:] for row in summary["stages"]] == stages
    whole = [name for name in PAIRED if name != "dynamic_width"]
    seen = {pair for order in [*ORDERS, *ELSEWHERE, whole] for pair in pairwise(order)}
    possible = {(a, b) for a in PAIRED for b in PAIRED if a not in (b, "quantize") and b != "teacher"}
    possible -= {(a, b) for a in EXITS for b in PAIRED if b != "quantize"}
    assert seen == possible


def test_a_student_of_another_family_learns_from_the_teacher(tiny_npz: Path, tmp_path: Path) -> None:
    config = make_tiny_config(tiny_npz)
    config.stages = ["teacher", "distill"]
    config.distill.student = "mobilenet_v3_small"
    summary = run_pipeline(config, tmp_path)
    assert restore(tmp_path / "02_distill", CPU).spec.architecture["model"] == "mobilenet_v3_small"
    assert summary["stages"][1]["metrics"]["params"] > 1_000_000


def test_a_prune_ratio_of_zero_leaves_the_teacher(tiny_npz: Path, tmp_path: Path) -> None:
    config = make_tiny_config(tiny_npz)
    config.stages, config.prune.ratio, config.prune.epochs = ["teacher", "prune"], 0.0, 0
    run_pipeline(config, tmp_path)
    assert digest_of_file(tmp_path / "02_prune" / MODEL) == digest_of_file(tmp_path / "01_teacher" / MODEL)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "teacher first"),
        (["prune"], "teacher first"),
        (["teacher", "quantize", "prune"], "quantize last"),
        (["teacher", "prune", "prune"], "each stage once"),
        (
            ["teacher", "shrink"],
            "with shrink; expected names among teacher, prune, search_architecture, factorize, distill, early_exit",
        ),
    ],
)
def test_impossible_orders_are_refused(stages: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_order(stages)


def test_a_run_ends_with_its_report(finished: Path) -> None:
    page, text = ((finished / name).read_text() for name in ("report.html", "report.md"))
    top1 = read_json(finished / "04_quantize" / "metrics.json")["deployed_top1_percent"]
    for part in (*FOLDERS, f"{top1:.2f}", "conv1"):
        assert part in page
        assert part in text


def test_json_is_plain(finished: Path) -> None:
    """NaN and Infinity are Python's own: other readers of JSON refuse them."""

    def refuse(name: str) -> None:
        raise AssertionError(f"a file holds {name}")

    found = [json.loads(path.read_text(), parse_constant=refuse) for path in finished.rglob("*.json")]
    assert len(found) == 4 * len(FOLDERS) + 1


def test_predictions_agree_with_the_metrics(finished: Path) -> None:
    from safetensors.numpy import load_file

    for name in FOLDERS:
        found = load_file(finished / name / "predictions.safetensors")
        metrics = read_json(finished / name / "metrics.json")
        assert 100 * np.mean(found["top1"] == found["labels"]) == pytest.approx(metrics["top1_percent"])
        assert 100 * np.mean(found["deployed_top1"] == found["labels"]) == pytest.approx(
            metrics["deployed_top1_percent"]
        )


def test_a_file_for_another_cpu_is_remarked(tiny_npz: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(stage_runner, "cpu_flags", lambda: ["avx2"])
    config = uncached(make_tiny_config(tiny_npz))
    config.teacher.model = "plain"
    config.stages, config.quantize.mode, config.quantize.target = ["teacher", "quantize"], "ptq", "x86_vnni"
    run_pipeline(config, tmp_path)
    assert "saturate here" in caplog.text
    assert "saturate here" in read_json(tmp_path / "02_quantize" / STAGE)["notes"]["target"]


def test_files_in_folders_go_through_every_stage(tmp_path: Path) -> None:
    """Decoded as they are needed, by worker processes, and split without a validation folder."""
    config = make_tiny_config(tmp_path)
    config.data = image_folder(tmp_path / "images", count=24)
    config.data.workers, config.data.batch_size = 1, 16
    config.teacher.epochs = 1
    summary = run_pipeline(config, tmp_path / "run")
    assert [row["stage"] for row in summary["stages"]] == FOLDERS
    spec = read_json(tmp_path / "run" / "04_quantize" / "model.json")
    assert spec["classes"] == ["cat", "dog"]
    assert spec["input"]["shape"] == [3, 16, 16]
    assert summary["stages"][0]["metrics"]["images"] == 48
