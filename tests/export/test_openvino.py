"""The OpenVINO IR: the logits of model.onnx, int8 where that is, the same bytes each time."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.export import Source
from compress.export import openvino as target
from compress.export.onnx_inspect import inspect_quantization

from .conftest import NETWORKS, MakeSource, need_extra, onnx_logits

need_extra("openvino")


def logits(folder: Path, images: Tensor) -> Tensor:
    return torch.from_numpy(target.open_runner(folder / "model.xml", 1)(images.numpy())[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_float_logits_are_those_of_onnx_runtime(source: MakeSource, images: Tensor, name: str) -> None:
    made = source(name, False)
    assert target.export(made) == []
    assert torch.allclose(logits(made.folder, images), onnx_logits(made, images), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_logits_are_near_those_of_onnx_runtime(source: MakeSource, images: Tensor, name: str) -> None:
    """Both run the same integers, but round the sums between layers at other places: a step of the grid, seldom more.

    A saturated sum of the kernels without VNNI, or a lost zero point, would be far off.
    """
    made = source(name, True)
    assert target.export(made) == []
    wanted = onnx_logits(made, images)
    difference = (logits(made.folder, images) - wanted).abs()
    assert difference.mean() < 0.02 * wanted.std()
    assert difference.max() < 0.25 * wanted.std()


def test_every_layer_runs_in_int8(source: MakeSource) -> None:
    made = source("residual", True)
    target.export(made)
    precisions = target.executed_precisions(made.folder / "model.xml", made.shape)
    assert len(precisions) == len(inspect_quantization(made.onnx)) == 6
    assert set(precisions.values()) <= {"u8", "i8"}


def test_a_layer_that_runs_in_float_is_named(source: MakeSource, images: Tensor, tmp_path: Path) -> None:
    """A float file in the place of a quantized one."""
    left_out = target.export(replace(source("plain", False), folder=tmp_path, calibration=[images]))
    assert [row["reason"] for row in left_out] == ["OpenVINO runs it as f32 on this CPU"] * 4


def test_the_same_file_gives_the_same_bytes_without_a_trace_of_the_machine(source: MakeSource, tmp_path: Path) -> None:
    made = source("plain", True)
    contents = []
    for name in ("first", "second"):  # one process: OpenVINO's own numbers go on counting in the second
        (tmp_path / name).mkdir()
        target.export(replace(made, folder=tmp_path / name))
        contents.append([(tmp_path / name / file).read_bytes() for file in ("model.xml", "model.bin")])
    assert contents[0] == contents[1]
    assert str(made.folder).encode() not in contents[0][0]
    assert b"/tmp" not in contents[0][0]


def test_the_number_of_images_is_free(source: MakeSource, images: Tensor) -> None:
    made: Source = source("plain", False)
    target.export(made)
    assert target.input_shape(made.shape) == ["N", 3, 16, 16]
    assert torch.allclose(logits(made.folder, images[:1]), logits(made.folder, images)[:1], atol=1e-5)


OVERLAP = """
import signal, sys
from pathlib import Path
import numpy as np
from compress.export import openvino as target

image = np.zeros((1, 3, 16, 16), np.float32)
first, second = (target.open_runner(Path(sys.argv[1]), 1) for _ in range(2))
first(image), second(image)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_is_survived_after_two_runners(source: MakeSource) -> None:
    """Two cores of OpenVINO that overlap leave the process a signal stack that is not there (a CPU with AMX or not)."""
    made = source("plain", False)
    target.export(made)
    command = [sys.executable, "-c", OVERLAP, made.folder / "model.xml"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_openvino_reports_to_nobody() -> None:
    """openvino_telemetry sends an event for every import unless it is kept out."""
    target._openvino()
    assert sys.modules["openvino_telemetry"] is None
