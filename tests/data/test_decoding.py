"""The processes that decode: they serve all passes and splits, end with their data set, and change no batch."""

import gc
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.augmentation import Augmentation
from compress.data.dataset import Data
from compress.utils.errors import UserError


def write_folder(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(10):
                pixels = generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path)
    return tmp_path


@pytest.fixture
def data(root: Path) -> Iterator[Data]:
    loaded = load(root, workers=2)
    yield loaded
    loaded.close()


def load(root: Path, workers: int) -> Data:
    gc.collect()  # ends the processes of data sets that other tests dropped
    config = DataConfig(name="imagefolder", root=str(root), image_size=16, batch_size=4, workers=workers)
    return load_data(config, 0)


def processes() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def epoch(data: Data, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    augmented = data.train.augmented(data.train.shuffle(generator), generator, Augmentation(2, True))
    return [batch.images for batch, _ in augmented]


def test_the_same_processes_serve_all_passes_and_splits(data: Data) -> None:
    first = processes()
    assert len(first) == 2
    for seed in range(2):
        epoch(data, seed)
        list(data.val.batches())
    list(data.test.batches())
    assert processes() == first


def test_processes_yield_what_one_yields(data: Data, root: Path) -> None:
    alone = load(root, workers=0)
    for seed in range(2):
        for one, other in zip(epoch(data, seed), epoch(alone, seed), strict=True):
            assert torch.equal(one, other)


def test_a_pass_draws_no_random_number_of_a_stage(data: Data) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(data, 0)
    list(data.val.batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_that_was_not_finished_leaves_nothing_to_the_next(data: Data) -> None:
    whole = [labels for _, labels in data.train.batches()]
    next(data.train.batches())
    for (_, labels), expected in zip(data.train.batches(), whole, strict=True):
        assert torch.equal(labels, expected)
    images = torch.cat([images for images, _ in data.train.batches()])
    next(data.train.batches())
    assert torch.equal(torch.cat([images for images, _ in data.train.batches()]), images)


def test_a_pass_within_another_leaves_that_alone(data: Data) -> None:
    expected = [images for images, _ in data.train.batches()]
    outer = data.train.batches()
    found = [next(outer)[0]]
    inner = [images for images, _ in data.train.batches()]
    found += [images for images, _ in outer]
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, inner, expected))
    assert len(processes()) == 2  # those of the inner pass have ended


def test_a_broken_file_ends_a_pass_and_not_the_processes(data: Data, root: Path) -> None:
    first = processes()
    path = root / "train" / "cat" / "3.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(UserError, match=r"cat/3\.png"):
        epoch(data, 0)
    path.write_bytes(whole)
    assert len(epoch(data, 0)) == 4
    assert processes() == first


def test_processes_end_with_their_data_set(root: Path) -> None:
    data = load(root, workers=2)
    assert len(processes()) == 2
    data.close()
    assert processes() == set()
    assert len(epoch(data, 0)) == 4  # a later pass starts others
    under_way = data.train.batches()
    next(under_way)
    data.close()
    assert processes() == set()
    list(data.test.batches())
    del data, under_way
    gc.collect()
    assert processes() == set()


_PROGRAM = """
import sys
from compress.config.data_settings import DataConfig
from compress.data import load_data
data = load_data(DataConfig(name="imagefolder", root=sys.argv[1], image_size=16, batch_size=2, workers=2), 0)
passes = data.train.batches()
next(passes)
if sys.argv[2] == "error":
    raise ValueError("an error in the middle of a pass")
"""


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["end", "error"])
def test_a_program_that_ends_in_the_middle_of_a_pass_does_not_hang(root: Path, how: str) -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM, str(root), how], capture_output=True, timeout=120)
    assert found.returncode == (how == "error")
