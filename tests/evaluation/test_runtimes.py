"""The processes that take turns: each turn is the calls asked for, and a failure comes with its cause."""

from pathlib import Path

import pytest
import torch

from compress.evaluation.benchmark_job import TurnsJob
from compress.evaluation.runtimes import _turns
from compress.export.onnx import export_onnx
from compress.models import Architecture, build


def job(file: Path) -> TurnsJob:
    return TurnsJob("onnx", str(file), (1, 8, 8), threads=1, calls=4)


def test_two_processes_take_turns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(build(Architecture("resnet8", "small", 1, 3)).eval(), tmp_path / "model.onnx", (1, 8, 8))
    with _turns(job(tmp_path / "model.onnx")) as first, _turns(job(tmp_path / "model.onnx")) as second:
        for turn in (first, second, first):
            times = next(turn)
            assert len(times) == 4
            assert min(times) > 0


def test_a_process_that_fails_is_an_error_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with (
        _turns(job(tmp_path / "broken.onnx")) as turns,
        pytest.raises(RuntimeError, match=r"the measuring process of onnx failed: (.|\n)*broken\.onnx"),
    ):
        next(turns)
