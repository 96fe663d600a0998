"""Runs that distill with several losses, teachers and rounds: their files, their cache, and their preflight."""

from dataclasses import replace
from pathlib import Path

import pytest

from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig
from compress.pipeline.preflight import run_preflight
from compress.pipeline.run import run_pipeline
from compress.utils.files import SPEC, STAGE, read_json

pytestmark = pytest.mark.e2e


def test_a_run_learns_from_another_run(tiny_config: Config, tmp_path: Path) -> None:
    first = replace(
        tiny_config, stages=["teacher"], seed=1, teacher=replace(tiny_config.teacher, model="plain", epochs=2)
    )
    run_pipeline(first, tmp_path / "first")
    distill = DistillConfig(
        losses=["kd_standardized=9", "at=100", "fitnet"],
        student="resnet8",
        teachers=[str(tmp_path / "first"), "teacher"],
        teacher_weights="accuracy",
        rounds=2,
        epochs=1,
    )
    config = replace(first, stages=["teacher", "distill"], seed=0, distill=distill)
    config = replace(config, train=replace(config.train, mixup=0.2))
    expected = run_preflight(config, tmp_path)["expected"]
    assert list(expected) == ["teacher", "float"]

    run_pipeline(config, tmp_path / "second")
    record = read_json(tmp_path / "second" / "02_distill" / STAGE)
    rows = record["notes"]["teachers"]
    assert [row["teacher"] for row in rows] == distill.teachers
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    shares = [row["weight"] / row["val_top1_percent"] for row in rows]
    assert shares[0] == pytest.approx(shares[1])
    assert len(record["notes"]["history"]) == 2
    assert [len(digests) for digests in record["inputs"]["teachers"]] == [2, 0]
    assert read_json(tmp_path / "second" / "02_distill" / SPEC)["architecture"]["model"] == "resnet8"
