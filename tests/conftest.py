"""Tiny, seeded data and networks that every test may use: nothing here downloads or takes long."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.config.schema import (
    CacheConfig,
    Config,
    DataConfig,
    DistillConfig,
    MeasureConfig,
    PruneConfig,
    QuantizeConfig,
    TeacherConfig,
)
from compress.evaluation import concurrent_runs
from compress.models import ZOO, Entry
from compress.models.cifar_resnet import CifarResNet

torch.set_num_threads(1)

LONGEST = (
    "launch/test_command.py",
    "launch/test_launchers.py",
    "tests/test_recipes.py",
    "pipeline/test_run.py",
    "training/test_distributed.py",
    "stages/test_stages.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, so that no worker is left alone with one of them at the end."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=place)


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


@pytest.fixture(scope="session", autouse=True)
def resnet8() -> None:
    """A network of three blocks, known to the zoo while the tests run."""
    ZOO["resnet8"] = Entry(
        "He et al. 2015, section 4.2, with one block a group", own=partial(CifarResNet, 8), small=None
    )


@pytest.fixture(scope="session", autouse=True)
def no_neighbours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests go on beside each other: none is told of another one's runs."""
    concurrent_runs.FOLDER = tmp_path_factory.mktemp("neighbours")


def make_tiny_config(npz: Path) -> Config:
    """All four stages on the tiny data, an epoch or two each."""
    return Config(
        data=DataConfig(name="npz", root=str(npz), image_size=8, batch_size=32, crop_padding=1, val_fraction=0.2),
        teacher=TeacherConfig(model="resnet8", epochs=3),
        prune=PruneConfig(ratio=0.5, round_to=1, reconstruction_samples=64, epochs=1),
        distill=DistillConfig(epochs=1),
        quantize=QuantizeConfig(mode="qat", calibration_samples=48, epochs=1),
        measure=MeasureConfig(batch_size=2, repetitions=3),
        cache=CacheConfig(enabled=False),
        threads=1,
    )


@pytest.fixture
def tiny_config(tiny_npz: Path) -> Config:
    """`make_tiny_config` on the session's data."""
    return make_tiny_config(tiny_npz)
