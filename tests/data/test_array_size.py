"""The size of images in an .npz file: that of its arrays where data.image_size=0, read from the header alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.config.data_settings import DataConfig
from compress.config.schema import Config
from compress.config.validation import check
from compress.data import load_data
from compress.data.array_size import with_array_size
from compress.pipeline.preprocessing import with_preprocessing
from compress.utils.errors import UserError


def written(path: Path, shape: tuple[int, ...], dtype: type = np.uint8) -> DataConfig:
    """A file of eight images of `shape` in each split, in MedMNIST's layout."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = generator.integers(0, np.iinfo(dtype).max, (8, *shape), dtype=dtype)
        arrays[f"{split}_labels"] = np.arange(8)[:, None] % 2
    np.savez_compressed(path, **arrays)
    return DataConfig("npz", str(path), image_size=0, batch_size=4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((28, 28), (1, 28, 28)), ((64, 64, 3), (3, 64, 64)), ((3, 16, 16), (3, 16, 16)), ((20, 12), (1, 12, 12))],
)
def test_images_keep_the_size_of_their_arrays(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int], dtype: type
) -> None:
    config = written(tmp_path / "set.npz", shape, dtype)
    check(config)
    data = load_data(with_preprocessing(Config(data=config)).data, 0)
    assert data.shape == expected
    assert next(data.test.batches())[0].shape[1:] == expected


def test_other_sizes_stay_as_they_are(tmp_path: Path) -> None:
    config = written(tmp_path / "set.npz", (28, 28))
    for size in (None, 16):
        assert with_array_size(replace(config, image_size=size)).image_size == size
    assert with_preprocessing(Config(data=replace(config, image_size=None))).data.image_size == 32


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_a_file_that_cannot_be_read_is_named_when_it_is_loaded(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "set.npz"
    if content is not None:
        path.write_bytes(content)
    config = with_array_size(DataConfig("npz", str(path), image_size=0))
    with pytest.raises(UserError, match=r"set\.npz"):
        load_data(config, 0)


@pytest.mark.parametrize(("name", "size"), [("digits", 0), ("imagefolder", 0), ("npz", 7), ("digits", 1)])
def test_a_size_that_cannot_be_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"data.image_size={size} with data={name}"):
        check(DataConfig(name, "there", image_size=size))
