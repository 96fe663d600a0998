"""The figures of a GPU: real ones where there is one, and their cause where the stage ran on the CPU."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from compress.evaluation.cuda import LATENCIES, cuda_latency, peak_memory, reset_peak_memory, time_calls
from compress.models import Architecture, build
from compress.models.artifact import Artifact, Spec, write_model
from compress.utils.missing import Unavailable

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_GPU = Unavailable("the stage ran on the CPU")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here that torch can use")


def test_on_the_cpu_each_figure_has_its_cause(tmp_path: Path) -> None:
    reset_peak_memory(CPU)
    assert cuda_latency(tmp_path, (1, 8, 8), CPU, calls=3) == dict.fromkeys(LATENCIES, NO_GPU)
    assert peak_memory(CPU) == NO_GPU


def test_calls_are_timed_alone_and_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what is asked of it, in order."""
    steps: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing
            self.at = -1

        def record(self) -> None:
            self.at = len(steps)
            steps.append("record")

        def synchronize(self) -> None:
            steps.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            assert steps[self.at : end.at + 1] == ["record", "call", "record"]
            assert steps[end.at + 1] == "wait"
            return float(end.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: steps.append("synchronize"))
    times = time_calls(lambda image: steps.append("call"), torch.zeros(1), calls=4)
    one = ["synchronize", "record", "call", "record", "wait"]
    assert steps == one * (len(steps) // len(one))
    assert len(steps) // len(one) > 4  # the warm-up
    assert times == [float(len(steps) - 2 - len(one) * back) for back in (3, 2, 1, 0)]


@needs_gpu
def test_a_gpu_gives_every_figure(tmp_path: Path) -> None:
    reset_peak_memory(CUDA)
    held = torch.ones(10_000_000, device=CUDA)
    del held
    assert peak_memory(CUDA) >= 40_000_000
    reset_peak_memory(CUDA)
    assert peak_memory(CUDA) < 40_000_000
    architecture = Architecture("resnet8", "small", 1, 3)
    write_model(Artifact(build(architecture), Spec(asdict(architecture), ["a", "b", "c"], {})), tmp_path)
    found = cuda_latency(tmp_path, (1, 8, 8), CUDA, calls=20)
    assert 0 < found[LATENCIES[0]] <= found[LATENCIES[1]]
