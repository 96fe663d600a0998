"""Runs that distill with several losses, teachers and rounds: their files, their cache, and their preflight."""

from dataclasses import replace
from pathlib import Path

import pytest

from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig
from compress.evaluation.flops import count_cost
from compress.models import Architecture, build
from compress.pipeline.preflight import run_preflight
from compress.pipeline.run import run_pipeline
from compress.utils.files import METRICS, SPEC, STAGE, read_json

pytestmark = pytest.mark.e2e


def test_a_run_learns_from_another_run(tiny_config: Config, tmp_path: Path) -> None:
    first = replace(
        tiny_config, stages=["teacher"], seed=1, teacher=replace(tiny_config.teacher, model="plain", epochs=2)
    )
    run_pipeline(first, tmp_path / "first")
    distill = DistillConfig(
        losses=["kd_standardized=9", "at=100", "fitnet"],
        student="resnet8",
        student_image_size=12,
        teachers=[str(tmp_path / "first"), "teacher"],
        teacher_weights="accuracy",
        rounds=2,
        epochs=1,
    )
    config = replace(first, stages=["teacher", "distill"], seed=0, distill=distill)
    config = replace(config, train=replace(config.train, mixup=0.2))
    expected = run_preflight(config, tmp_path)["expected"]
    assert list(expected) == ["teacher", "float"]
    macs = count_cost(build(Architecture("resnet8", "small", 1, 3)).eval(), (1, 12, 12))[1]
    assert expected["float"]["macs"] == macs

    run_pipeline(config, tmp_path / "second")
    record = read_json(tmp_path / "second" / "02_distill" / STAGE)
    rows = record["notes"]["teachers"]
    assert [row["teacher"] for row in rows] == distill.teachers
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    shares = [row["weight"] / row["val_top1_percent"] for row in rows]
    assert shares[0] == pytest.approx(shares[1])
    assert len(record["notes"]["history"]) == 2
    assert [len(digests) for digests in record["inputs"]["teachers"]] == [2, 0]
    spec, metrics = (read_json(tmp_path / "second" / "02_distill" / name) for name in (SPEC, METRICS))
    assert spec["architecture"]["model"] == "resnet8"
    assert spec["changes"] == [{"method": "resize_input", "size": [12, 12]}]
    assert spec["input"]["shape"] == [1, 8, 8]  # of the images that the file takes
    assert metrics["macs"] == macs
    assert metrics["deployed_agreement_percent"] == 100
