"""The measuring process: it runs the file that it is given, and its answer is complete. No figure is compared."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from compress.evaluation import benchmark as module
from compress.evaluation.benchmark import benchmark, time_and_memory
from compress.evaluation.benchmark_job import BenchmarkJob, TurnsJob, parse_job, worker_command
from compress.evaluation.environment import environment
from compress.evaluation.flops import count_cost
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import executed_operators

from .conftest import QUICK, SHAPE


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 64 MB of weights."""
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 4000), torch.nn.Linear(4000, 4000), torch.nn.Linear(4000, 3)]
    export_onnx(torch.nn.Sequential(*layers).eval(), path, SHAPE)
    return path


def test_every_figure_is_taken(file: Path) -> None:
    figures = benchmark(file, file, SHAPE, QUICK, threads=1).figures
    assert figures["size_bytes"] == file.stat().st_size
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p95"]
    assert figures["throughput_images_per_s"] > 0
    assert figures["speedup_vs_teacher"] == 1  # against itself
    assert 10_000_000 < figures["peak_memory_bytes"] < 10**9


def test_the_process_knows_neither_torch_nor_the_parents_memory(file: Path) -> None:
    """The parent of this test holds torch and hundreds of megabytes; the process must not report them as its own."""
    ballast = torch.ones(150_000_000)
    figures = time_and_memory(file, file, SHAPE, QUICK, threads=1)
    assert figures["peak_memory_bytes"] < 4 * len(ballast) / 2


def test_the_profile_names_every_node_that_is_executed(file: Path) -> None:
    found = benchmark(file, file, SHAPE, QUICK, threads=1).profile
    assert (found["threads"], found["runs"]) == (1, QUICK.repetitions)
    executed = executed_operators(file)
    assert Counter(node["operator"] for node in found["nodes"]) == executed
    assert sum(node["share_percent"] for node in found["nodes"]) == pytest.approx(100)
    assert all(node["ms"] >= 0 for node in found["nodes"])
    assert len({node["name"] for node in found["nodes"]}) == len(found["nodes"])


def test_one_process_takes_all_figures(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, run = [], module.run_job
    monkeypatch.setattr(module, "run_job", lambda job: jobs.append(job) or run(job))
    benchmark(file, file, SHAPE, QUICK, threads=1)
    assert len(jobs) == 1


def test_the_memory_is_that_of_the_file_alone(file: Path, large: Path) -> None:
    """It is read before the rival is opened, and before any other figure is taken."""
    alone = time_and_memory(file, file, SHAPE, QUICK, threads=1)["peak_memory_bytes"]
    figures = benchmark(file, large, SHAPE, QUICK, threads=1).figures
    assert figures["peak_memory_bytes"] < alone + large.stat().st_size / 2
    assert figures["speedup_vs_teacher"] > 1
    own = benchmark(large, file, SHAPE, QUICK, threads=1).figures
    assert own["peak_memory_bytes"] > alone + large.stat().st_size / 2


@pytest.mark.parametrize("job", [BenchmarkJob(("time",), "a", (1, 8, 8), 2), TurnsJob("onnx", "a", (1, 8, 8), 1, 4)])
def test_a_job_arrives_as_it_was_sent(job: BenchmarkJob | TurnsJob) -> None:
    command, _ = worker_command(job)
    assert parse_job(command[-1]) == job


def test_a_file_that_cannot_run_is_an_error_with_its_cause(tmp_path: Path, file: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"the measuring process ended with 1(.|\n)*broken\.onnx"):
        time_and_memory(broken, file, SHAPE, QUICK, threads=1)


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
