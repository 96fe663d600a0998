"""Tiny, seeded data and networks that every test may use: nothing here downloads or takes long."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compress.config.conditional_settings import DynamicWidthConfig, EarlyExitConfig
from compress.config.data_settings import DataConfig
from compress.config.schema import CacheConfig, Config, MeasureConfig
from compress.config.stage_settings import (
    DistillConfig,
    PruneConfig,
    QuantizeConfig,
    TeacherConfig,
)
from compress.evaluation import benchmark, concurrent_runs
from compress.evaluation.benchmark_job import ENERGY, MEMORY, PROFILE, TIME, BenchmarkJob
from compress.models import ZOO, Entry
from tests.own_networks import Blocks, Plain

torch.set_num_threads(1)


def tiny_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Three classes of 8x8 grey images that differ by where they are bright."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 120), ("test", 45)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 60, (count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 2] += 150
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.int64)
    return arrays


def labelled_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The same with three independent labels: each is bright columns of its own."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 160), ("test", 60)):
        labels = (generator.random((count, 3)) < 0.4).astype(np.uint8)
        images = generator.integers(0, 60, (count, 8, 8))
        for image, row in zip(images, labels, strict=True):
            for label in np.flatnonzero(row):
                image[:, 3 * label : 3 * label + 2] += 150
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images.astype(np.uint8), labels
    return arrays


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data as a file in MedMNIST's layout."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **tiny_arrays())
    return path


# Where stages are kept that tests share, while a session lasts; a process that a test starts has none.
_shared_stages: Path | None = None


@pytest.fixture(scope="session", autouse=True)
def shared_stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all tests and all workers of pytest-xdist: what many tests start from is computed once."""
    global _shared_stages
    folder = tmp_path_factory.getbasetemp()
    _shared_stages = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared_stages"
    yield
    _shared_stages = None


_measure = benchmark.run_job


@pytest.fixture(scope="session", autouse=True)
def quick_measure() -> Iterator[None]:
    """Canned figures in place of a measuring process: few tests look at time and memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "run_job", _canned)
        yield


@contextmanager
def real_measure() -> Iterator[None]:
    """The measuring process itself; a run in here is `uncached`, for what is in the shared cache has canned figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "run_job", _measure)
        yield


def _canned(job: BenchmarkJob) -> dict[str, dict[str, Any]]:
    """A quarter of a millisecond for each call of a file; its nodes as they are in the file."""
    files, calls = 2 if job.rival else 1, [0.25] * job.repetitions
    others = {"to_the_end_ms": [0.5] * job.repetitions, "last_end_ms": [0.4] * job.repetitions}
    nodes = onnx.load(job.file, load_external_data=False).graph.node
    share = 1 / len(nodes)
    answer = {
        MEMORY: {"peak_memory_bytes": 50_000_000},
        TIME: {"single_ms": [calls] * files, "batch_ms": [[0.5] * 3] * files, **others},
        PROFILE: {
            "nodes": [
                {"name": node.name, "operator": node.op_type, "ms": share, "share_percent": 100 * share}
                for node in nodes
            ]
        },
        ENERGY: {"joules": 1.0, "images": 100},
    }
    return {task: answer[task] for task in job.tasks}


@pytest.fixture(scope="session", autouse=True)
def plain_network() -> None:
    """`teacher.model=plain`, for runs whose network is not the subject: it exports in a third of resnet8's time.

    `blocks` is for searches: it has residual blocks and large kernels.
    """
    ZOO["plain"] = Entry("tests/own_networks.py", own=lambda channels, classes: Plain(classes, channels), small=None)
    ZOO["blocks"] = Entry("tests/own_networks.py", own=lambda channels, classes: Blocks(classes, channels), small=None)


@pytest.fixture(scope="session", autouse=True)
def no_neighbours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests go on beside each other: none is told of another one's runs."""
    concurrent_runs.FOLDER = tmp_path_factory.mktemp("neighbours")


def make_tiny_config(npz: Path) -> Config:
    """All four stages on the tiny data, an epoch or two each; a stage that another test computed is taken."""
    return Config(
        data=DataConfig(name="npz", root=str(npz), image_size=8, batch_size=32, crop_padding=1, val_fraction=0.2),
        teacher=TeacherConfig(model="resnet8", epochs=3),
        prune=PruneConfig(ratio=0.5, round_to=1, reconstruction_samples=64, epochs=1),
        distill=DistillConfig(epochs=1),
        early_exit=EarlyExitConfig(epochs=1),
        dynamic_width=DynamicWidthConfig(round_to=1, epochs=1),
        quantize=QuantizeConfig(mode="qat", calibration_samples=48, epochs=1),
        measure=MeasureConfig(batch_size=2, repetitions=3),
        cache=CacheConfig(str(_shared_stages), enabled=_shared_stages is not None),
        threads=1,
    )


def uncached(config: Config) -> Config:
    """`config` for a test that is about the computing itself, or that changes what is computed behind its back."""
    return replace(config, cache=CacheConfig(enabled=False))


@pytest.fixture
def tiny_config(tiny_npz: Path) -> Config:
    """`make_tiny_config` on the session's data."""
    return make_tiny_config(tiny_npz)
