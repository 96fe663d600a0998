"""Independent labels through every stage, report, prediction and target: no stage and no pipeline knows of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import compress
from compress.config.schema import Config
from compress.models.artifact import read_tensors
from compress.pipeline.run import run_pipeline
from compress.report.write import write_run
from compress.tasks import TASKS
from compress.utils.files import METRICS, PREDICTIONS, SENSITIVITY, SPEC, read_json
from tests.conftest import labelled_arrays, make_tiny_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("labels") / "labels.npz"
    np.savez(path, **labelled_arrays())
    tiny = make_tiny_config(path)
    return replace(
        tiny,
        data=replace(tiny.data, task="multilabel"),
        teacher=replace(tiny.teacher, epochs=4),
        quantize=replace(tiny.quantize, mode="ptq", max_drop_points=2.0),
    )


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_pipeline(config, folder)
    return folder


def test_it_learns_and_keeps_what_it_learnt(finished: Path) -> None:
    percents = [read_json(stage / METRICS)["deployed_auroc_percent"] for stage in sorted(finished.glob("0*"))]
    assert len(percents) == 4
    assert min(percents) > 70


def test_metrics_have_the_tasks_figures_and_no_others(finished: Path) -> None:
    metrics = read_json(finished / "04_quantize" / METRICS)
    assert metrics["metric"] == "auroc"
    assert not [name for name in metrics if "top1" in name or "mcnemar" in name]
    assert len(metrics["deployed_auroc_by_label_percent"]) == 3
    low, high = metrics["deployed_auroc_ci95_percent"]
    assert low <= metrics["deployed_auroc_percent"] <= high
    assert read_json(finished / "04_quantize" / SPEC)["task"] == "multilabel"
    history = read_json(finished / "01_teacher" / "stage.json")["notes"]["history"]
    assert {"train_label_accuracy_percent", "val_auroc_percent"} <= set(history[0])
    assert "float_auroc_percent" in read_json(finished / "04_quantize" / SENSITIVITY)


def test_the_figures_are_those_of_the_kept_predictions(finished: Path) -> None:
    for stage in sorted(finished.glob("0*")):
        found, metrics = read_tensors(stage / PREDICTIONS), read_json(stage / METRICS)
        score = TASKS["multilabel"].score(found["deployed_scores"], found["labels"])
        assert metrics["deployed_auroc_percent"] == pytest.approx(score)


def test_the_pages_show_the_labels(finished: Path) -> None:
    page = write_run(finished).read_text()
    assert "AUROC of each label" in page
    assert "Mean AUROC" in page
    assert "top-1" not in page
    assert "AUROC of each label" in (finished / "report.md").read_text()


def test_a_prediction_has_a_probability_for_each_label(finished: Path) -> None:
    images = labelled_arrays()["test_images"]
    found = compress.load(finished).predict(list(images[:4]))
    scores = read_tensors(finished / "04_quantize" / PREDICTIONS)["deployed_scores"][:4].numpy()
    expected = 1 / (1 + np.exp(-scores / read_json(finished / "04_quantize" / SPEC)["temperature"]))
    assert [[row[name] for name in ("0", "1", "2")] for row in found] == [
        pytest.approx(row, abs=1e-5) for row in expected.tolist()
    ]


def test_a_summary_names_the_points_lost(finished: Path) -> None:
    rows = json.loads((finished / "summary.json").read_text())["stages"]
    for row in rows:
        assert row["points_lost"] == pytest.approx(-row["metrics"]["auroc_delta_points"])
