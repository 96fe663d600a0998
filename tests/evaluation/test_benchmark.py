"""The measuring process: it runs the file that it is given, and its answer is complete. No figure is compared."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from compress.config.schema import MeasureConfig
from compress.evaluation.benchmark import deployed_figures, profile
from compress.evaluation.environment import environment
from compress.evaluation.flops import count_cost
from compress.export.onnx_inspect import executed_operators

from .conftest import SHAPE

QUICK = MeasureConfig(batch_size=2, repetitions=3)


def test_every_figure_is_taken(file: Path) -> None:
    figures = deployed_figures(file, file, SHAPE, QUICK, threads=1)
    assert figures["size_bytes"] == file.stat().st_size
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p95"]
    assert figures["throughput_images_per_s"] > 0
    assert figures["speedup_vs_teacher"] == 1  # against itself
    assert 10_000_000 < figures["peak_memory_bytes"] < 10**9


def test_the_process_knows_neither_torch_nor_the_parents_memory(file: Path) -> None:
    """The parent of this test holds torch and hundreds of megabytes; the process must not report them as its own."""
    ballast = torch.ones(150_000_000)
    figures = deployed_figures(file, file, SHAPE, QUICK, threads=1)
    assert figures["peak_memory_bytes"] < 4 * len(ballast) / 2


def test_the_profile_names_every_node_that_is_executed(file: Path) -> None:
    found = profile(file, SHAPE, QUICK, threads=1)
    assert (found["threads"], found["runs"]) == (1, QUICK.repetitions)
    executed = executed_operators(file)
    assert Counter(node["operator"] for node in found["nodes"]) == executed
    assert sum(node["share_percent"] for node in found["nodes"]) == pytest.approx(100)
    assert all(node["ms"] >= 0 for node in found["nodes"])
    assert len({node["name"] for node in found["nodes"]}) == len(found["nodes"])


def test_a_file_that_cannot_run_is_an_error_with_its_cause(tmp_path: Path, file: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"the measuring process ended with 1(.|\n)*broken\.onnx"):
        deployed_figures(broken, file, SHAPE, QUICK, threads=1)


def test_cost_of_a_network_worked_out_by_hand() -> None:
    """3x3 convolution 1 -> 4 on 8x8, then a linear layer 4 -> 3: 64 * 4 * 9 + 12 multiply-accumulates."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    )
    assert count_cost(network.eval(), SHAPE) == (4 * 9 + 4 + 12 + 3, 64 * 4 * 9 + 12)


def test_the_environment_names_the_machine() -> None:
    found = environment(2)
    assert found["threads"] == 2
    assert found["cpu"]
    assert isinstance(found["cpu_flags"], list)
    assert {"torch", "onnxruntime", "compress", "python"} <= set(found["versions"])
