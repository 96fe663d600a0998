"""Boxes through every stage, the files, the report and prediction: no stage and no pipeline knows of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from compress.config.schema import Config, ExportConfig, TrainConfig
from compress.data import load_data
from compress.evaluation.inference import onnx_runner
from compress.export.onnx_inspect import INT8_LAYERS, executed_operators, inspect_quantization
from compress.export.onnx_session import open_session
from compress.methods.restore import restore
from compress.models.anchor_rows import decode
from compress.models.artifact import read_tensors
from compress.pipeline.run import run_pipeline
from compress.tasks import TASKS
from compress.utils.files import METRICS, MODEL, NMS_ONNX, ONNX, PREDICTIONS, SPEC, STAGE, read_json
from tests.conftest import make_tiny_config, uncached
from tests.drawn_shapes import CLASSES, write_shapes

pytest.importorskip("torchmetrics", reason="the extra detection is not installed")
pytestmark = pytest.mark.e2e

DETECTION = TASKS["detection"]
FOLDERS = ("01_teacher", "02_prune", "03_distill", "04_quantize")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, {"train": 96, "val": 24, "test": 32})
    return root


@pytest.fixture(scope="module")
def config(shapes: Path) -> Config:
    tiny = make_tiny_config(shapes)
    data = replace(
        tiny.data, name="voc", task="detection", image_size=32, batch_size=16, box_augmentation="hflip", workers=0
    )
    teacher = replace(
        tiny.teacher, model="ssdlite/resnet8", epochs=12, lr=0.01, anchor_scales=[0.3, 0.9], anchor_ratios=[2.0]
    )
    return replace(
        tiny,
        data=data,
        teacher=teacher,
        prune=replace(tiny.prune, ratio=0.3, epochs=0),
        distill=replace(tiny.distill, epochs=6, lr=0.003, temperature=1.0),
        quantize=replace(tiny.quantize, mode="qat", epochs=2, lr=0.0005, temperature=1.0),
        train=TrainConfig(optimizer="adamw", weight_decay=0.01),
        export=ExportConfig(nms=True),
    )


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_pipeline(config, folder)
    return folder


def unlike(rows: np.ndarray, others: np.ndarray) -> int:
    """The number of `rows` without an equal one among `others`; equal scores, of which int8 has many, have no order."""
    distances = np.abs(rows[:, None] - others[None]).max(2)
    return int((distances.min(1) > 1e-3).sum())


def test_it_learns_and_keeps_what_it_learnt(finished: Path) -> None:
    metrics = [read_json(finished / name / METRICS) for name in FOLDERS]
    percents = [row["deployed_map50_percent"] for row in metrics]
    assert percents[0] > 60
    assert percents[2] > percents[0] - 15
    assert percents[3] > percents[2] - 10
    assert metrics[0]["macs"] > 1.3 * metrics[3]["macs"]
    assert metrics[3]["size_bytes"] < metrics[2]["size_bytes"]


def test_metrics_have_the_tasks_figures_and_no_others(finished: Path) -> None:
    metrics = read_json(finished / "04_quantize" / METRICS)
    assert metrics["metric"] == "map50"
    assert not [name for name in metrics if "top1" in name or "auroc" in name]
    assert len(metrics["deployed_map50_by_class_percent"]) == len(CLASSES)
    assert 0 < metrics["deployed_map_percent"] < metrics["deployed_map50_percent"]
    low, high = metrics["deployed_map50_ci95_percent"]
    assert low <= metrics["deployed_map50_percent"] <= high
    low, high = metrics["map50_delta_ci95_points"]
    assert low <= metrics["map50_delta_points"] <= high
    spec = read_json(finished / "04_quantize" / SPEC)
    assert (spec["task"], spec["classes"], spec["input"]["resize"]) == ("detection", CLASSES, "stretch")


def test_the_figures_are_those_of_the_kept_predictions(finished: Path, config: Config) -> None:
    test = load_data(config.data, config.seed).test
    for name in FOLDERS:
        kept = read_tensors(finished / name / PREDICTIONS)
        run = onnx_runner(finished / name / ONNX, 1)
        rows = torch.cat([DETECTION.files.join(run(images.numpy())) for images, _ in test.batches()])
        expected = read_json(finished / name / METRICS)["deployed_map50_percent"]
        assert DETECTION.score(rows, kept["labels"]) == pytest.approx(expected)
        found = DETECTION.predictions(test.labels, rows, {"onnx": rows})["deployed_detections"]
        torch.testing.assert_close(found, kept["deployed_detections"])


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_computes_what_torch_computes(name: str, finished: Path, config: Config) -> None:
    """Float to rounding; int8 as its simulation, but for values next to a rounding step."""
    images = next(load_data(config.data, config.seed).test.batches())[0]
    with torch.no_grad():
        boxes, scores = decode(restore(finished / name, torch.device("cpu")).network(images))
    session = open_session(finished / name / ONNX)
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores"]
    found_boxes, found_scores = (torch.from_numpy(array) for array in session.run(None, {"image": images.numpy()}))
    assert found_boxes.shape == boxes.shape
    assert found_boxes.min() >= 0
    assert found_boxes.max() <= 32
    if name == "04_quantize":
        assert (found_scores - scores).abs().mean() < 0.01
        assert (found_boxes - boxes).abs().mean() < 0.3
    else:
        torch.testing.assert_close(found_scores, scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found_boxes, boxes, rtol=1e-3, atol=1e-2)


def test_all_layers_are_int8_and_only_the_decoding_is_float(finished: Path) -> None:
    path = finished / "04_quantize" / ONNX
    layers = inspect_quantization(path)
    assert all(layer.quantized for layer in layers)
    executed = executed_operators(path)
    assert sum(executed[operator] for operator in INT8_LAYERS) == len(layers)
    metrics, record = (read_json(finished / "04_quantize" / name) for name in (METRICS, STAGE))
    assert metrics["int8_macs_percent"] == 100
    assert record["left_out"] == []


def test_the_heads_last_layers_keep_their_outputs(finished: Path) -> None:
    left_out = {row["layer"]: row["reason"] for row in read_json(finished / "02_prune" / STAGE)["left_out"]}
    last = [name for name in left_out if name.startswith("head.") and name.endswith(".1")]
    assert len(last) == 2 * 5  # a box and a class layer for each feature map


def test_the_layers_are_refitted_to_what_they_lost(finished: Path) -> None:
    notes = read_json(finished / "02_prune" / STAGE)["notes"]
    assert any(name.startswith("backbone.features") for name in notes["unexplained_share"])
    assert any(name.startswith("head.") for name in notes["unexplained_share"])


def test_the_file_with_suppression_finds_the_same_boxes(finished: Path, config: Config) -> None:
    test = load_data(config.data, config.seed).test
    for name in FOLDERS:
        metrics = read_json(finished / name / METRICS)
        assert metrics["with_nms"]["map50_percent"] == pytest.approx(metrics["deployed_map50_percent"], abs=1e-6)
        session = open_session(finished / name / NMS_ONNX)
        images = next(test.batches())[0][:4]
        (found,) = session.run(None, {"image": images.numpy()})
        kept = read_tensors(finished / name / PREDICTIONS)["deployed_detections"][:4].numpy()
        for number in range(4):
            own = found[found[:, 0] == number][:, 1:]
            expected = kept[number][kept[number][:, 1] > 0.1]
            assert len(expected)
            assert unlike(expected, own) == 0
            assert unlike(own[own[:, 1] > 0.1], expected) == 0


def test_a_prediction_has_the_boxes_of_the_file(finished: Path, shapes: Path) -> None:
    """The images are as large as the network's input, so that boxes are in the same pixels."""
    names = (shapes / "ImageSets/Main/test.txt").read_text().split()
    found = compress.load(finished).predict([shapes / f"JPEGImages/{name}.png" for name in names])
    kept = read_tensors(finished / "04_quantize" / PREDICTIONS)["deployed_detections"].numpy()
    for detections, rows in zip(found, kept, strict=True):
        sure = rows[rows[:, 1] >= 0.5]
        assert [one.label for one in detections] == [CLASSES[int(row[0])] for row in sure]
        for one, row in zip(detections, sure, strict=True):
            assert one.box == pytest.approx(row[2:].tolist(), abs=0.2)


@pytest.mark.long
def test_a_second_run_computes_the_same(config: Config, finished: Path, tmp_path: Path) -> None:
    short = replace(config, teacher=replace(config.teacher, epochs=2), stages=["teacher"])
    for folder in ("one", "two"):
        run_pipeline(uncached(short), tmp_path / folder)
    one, two = (read_tensors(tmp_path / folder / "01_teacher" / MODEL) for folder in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_users_own_detector_goes_through_all_stages(config: Config, tmp_path: Path) -> None:
    teacher = replace(config.teacher, factory="tests.own_networks:detector", epochs=2)
    quantize = replace(config.quantize, mode="ptq", max_drop_points=50.0)
    run_pipeline(
        replace(config, teacher=teacher, quantize=quantize, distill=replace(config.distill, epochs=1)), tmp_path
    )
    metrics = [read_json(tmp_path / name / METRICS) for name in FOLDERS]
    assert metrics[3]["macs"] < metrics[0]["macs"]
    assert metrics[3]["int8_macs_percent"] == 100
    assert metrics[3]["deployed_agreement_percent"] > 80
