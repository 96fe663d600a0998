"""Data sets: splits that repeat, images that arrive unharmed, and faults that are named before any work."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.augmentation import Augmentation
from compress.data.dataset import stratified_split
from compress.utils.errors import UserError
from tests.conftest import tiny_arrays


def npz(path: Path, **changes: np.ndarray | None) -> DataConfig:
    arrays = {name: value for name, value in (tiny_arrays() | changes).items() if value is not None}
    np.savez(path / "data.npz", **arrays)
    return DataConfig(name="npz", root=str(path / "data.npz"), image_size=8, batch_size=32)


def image_folder(root: Path, splits: tuple[str, ...] = ("train", "test"), count: int = 6) -> DataConfig:
    generator = np.random.default_rng(0)
    for split in splits:
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return DataConfig(name="imagefolder", root=str(root), image_size=16, batch_size=4, workers=0)


def test_digits_need_no_download() -> None:
    data = load_data(DataConfig(), 0)
    assert data.sizes == {"train": 1295, "val": 142, "test": 360}
    assert data.shape == (1, 32, 32)
    images, labels = next(data.train.batches())
    assert images.shape == (128, 1, 32, 32)
    assert images.dtype == torch.float32
    assert set(labels.tolist()) == set(range(10))


def test_train_is_normalised_by_its_own_statistics() -> None:
    data = load_data(DataConfig(), 0)
    images = torch.cat([batch for batch, _ in data.train.batches()])
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_splits_repeat_with_the_seed_and_differ_without(tmp_path: Path) -> None:
    config = npz(tmp_path)
    assert load_data(config, 0).fingerprint == load_data(config, 0).fingerprint
    assert load_data(config, 0).fingerprint != load_data(config, 1).fingerprint


def test_the_fingerprint_sees_one_changed_pixel_and_one_changed_label(tmp_path: Path) -> None:
    plain = load_data(npz(tmp_path), 0).fingerprint
    arrays = tiny_arrays()
    arrays["test_images"][0, 0, 0] += 1
    assert load_data(npz(tmp_path, **arrays), 0).fingerprint != plain
    arrays = tiny_arrays()
    arrays["train_labels"][:2] = arrays["train_labels"][[1, 0]]
    assert load_data(npz(tmp_path, **arrays), 0).fingerprint != plain


def test_validation_is_stratified_and_apart_from_train() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2)
    train, val = stratified_split(labels, 0.1, 0)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(62))
    assert torch.bincount(labels[val]).tolist() == [5, 1, 1]


def test_validation_may_be_a_share_of_test(tmp_path: Path) -> None:
    config = npz(tmp_path)
    config.val_from, config.val_fraction = "test", 0.2
    data, other = load_data(config, 0), load_data(config, 1)
    assert data.sizes == {"train": 120, "val": 9, "test": 36}
    assert data.val_from == "test"
    assert torch.bincount(data.val.labels).tolist() == [3, 3, 3]
    assert sorted([*data.val.index.tolist(), *data.test.index.tolist()]) == list(range(45))
    assert data.val.pixels is data.test.pixels
    assert load_data(config, 0).fingerprint == data.fingerprint != other.fingerprint


def test_a_validation_split_of_its_own_is_used_whatever_val_from_is(tmp_path: Path) -> None:
    arrays = tiny_arrays(1)
    config = npz(tmp_path, val_images=arrays["test_images"], val_labels=arrays["test_labels"])
    config.val_from = "test"
    data = load_data(config, 0)
    assert data.sizes == {"train": 120, "val": 45, "test": 45}
    assert data.val_from == "own"


def test_a_test_split_of_one_image_a_class_has_none_to_spare(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    config = npz(tmp_path, test_images=arrays["test_images"][:3], test_labels=arrays["test_labels"][:3])
    config.val_from = "test"
    with pytest.raises(UserError, match=r"data\.val_from=test with 3 images in test, one of each class"):
        load_data(config, 0)


def test_given_validation_is_used(tmp_path: Path) -> None:
    arrays = tiny_arrays(1)
    config = npz(tmp_path, val_images=arrays["test_images"], val_labels=arrays["test_labels"])
    assert load_data(config, 0).sizes == {"train": 120, "val": 45, "test": 45}


def test_batches_keep_images_and_labels_together(tmp_path: Path) -> None:
    """The bright columns of a tiny image tell its label."""
    data = load_data(npz(tmp_path), 0)
    for split in (data.train, data.val, data.test):
        parts = [(images, labels) for images, labels in split.batches()]
        images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        brightest = torch.stack([images[:, 0, :, 3 * k : 3 * k + 2].mean((1, 2)) for k in range(3)], 1)
        assert torch.equal(brightest.argmax(1), labels)
        assert torch.equal(labels, split.labels)


def test_shuffled_epochs_differ_and_repeat(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path), 0)

    def epoch(generator: torch.Generator, done: int = 0) -> list[list[int]]:
        order = data.train.shuffle(generator)
        return [
            examples.labels.tolist()
            for examples, _ in data.train.augmented(order, generator, Augmentation(0, False), done)
        ]

    generator = torch.Generator().manual_seed(0)
    first, second = epoch(generator), epoch(generator)
    assert first != second
    assert epoch(torch.Generator().manual_seed(0)) == first
    assert len(first) == data.train.steps() > 1
    for done in range(len(first) + 1):
        assert epoch(torch.Generator().manual_seed(0), done) == first[done:]


def test_colour_and_resizing(tmp_path: Path) -> None:
    colour = np.repeat(tiny_arrays()["train_images"][..., None], 3, axis=3)
    test = np.repeat(tiny_arrays()["test_images"][..., None], 3, axis=3)
    config = npz(tmp_path, train_images=colour, test_images=test)
    config.image_size = 12
    data = load_data(config, 0)
    assert data.shape == (3, 12, 12)
    assert len(data.mean) == len(data.std) == 3


def test_crops_are_windows_of_the_padded_image_and_differ() -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(128, 1, 1, 1)
    crops, _ = Augmentation(1, False)(images, torch.zeros(128), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[0, 0], (1, 1, 1, 1))
    windows = [padded[top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    found = [next(i for i, window in enumerate(windows) if torch.equal(window, crop[0])) for crop in crops]
    assert len(set(found)) == 9


def test_flips_are_an_images_own() -> None:
    images = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8).repeat(64, 1, 1, 1)
    flipped, _ = Augmentation(0, True)(images, torch.zeros(64), torch.Generator().manual_seed(0))
    backwards = (flipped == images.flip(3)).all(3).flatten()
    assert (backwards | (flipped == images).all(3).flatten()).all()
    assert 16 < int(backwards.sum()) < 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros(120, np.int64)}, "one class only in train"),
        ({"train_labels": np.arange(120) % 3 - 1}, "labels from -1 to 1 in train"),
        ({"test_labels": np.arange(45) % 4}, "labels from 0 to 3 in test; expected labels from 0 to 2"),
        ({"test_labels": None}, "test_labels missing"),
        ({"test_images": None, "test_labels": None}, "expected test_images and test_labels"),
        ({"train_labels": np.zeros((120, 14), np.int64)}, r"train_labels int64 \(120, 14\)"),
        ({"train_labels": np.arange(120) / 2}, r"train_labels\[1\] is 0.5; 60 of 120 are no whole numbers"),
        ({"train_images": np.full((120, 8, 8), 2.0)}, "train_images with float64 from 2 to 2"),
        ({"train_images": np.zeros((120, 64), np.uint8)}, r"train_images with images \(120, 64\)"),
        ({"train_images": np.zeros((120, 8, 8, 4), np.uint8)}, "test has 1 channels, train 4"),
        ({"test_images": np.zeros((45, 8, 8, 3), np.uint8)}, "test has 3 channels, train 1"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, np.int64)}, "no images in test"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(npz(tmp_path, **changes), 0)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_broken_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"expected an \.npz of plain arrays"):
        load_data(DataConfig(name="npz", root=str(tmp_path / "data.npz")), 0)


def test_an_archive_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without pickled objects"):
        load_data(npz(tmp_path, train_labels=np.array([{}] * 120, dtype=object)), 0)


@pytest.mark.parametrize("name", ["npz", "imagefolder"])
@pytest.mark.parametrize("root", [None, "nowhere"])
def test_a_missing_root_is_refused(name: str, root: str | None) -> None:
    with pytest.raises(UserError, match=rf"received data\.root={root}"):
        load_data(DataConfig(name=name, root=root), 0)


def test_a_mean_for_other_channels_is_refused(tmp_path: Path) -> None:
    config = npz(tmp_path)
    config.mean = config.std = [0.5, 0.5, 0.5]
    with pytest.raises(UserError, match=r"data\.mean with 3 values; expected 1"):
        load_data(config, 0)


def test_a_folder_of_images(tmp_path: Path) -> None:
    data = load_data(image_folder(tmp_path, ("train", "val", "test")), 0)
    assert data.classes == ["cat", "dog"]
    assert data.sizes == {"train": 12, "val": 12, "test": 12}
    images = torch.cat([images for images, _ in data.test.batches()])
    assert images.shape == (12, 3, 16, 16)


def test_worker_processes_decode_the_same(tmp_path: Path) -> None:
    config = image_folder(tmp_path)
    alone = [images for images, _ in load_data(config, 0).train.batches()]
    config.workers = 2
    shared = [images for images, _ in load_data(config, 0).train.batches()]
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named(tmp_path: Path, workers: int) -> None:
    config = image_folder(tmp_path)
    config.workers = workers
    data = load_data(config, 0)
    bad = tmp_path / "test" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UserError, match=r"dog/3\.png"):
        list(data.test.batches())


def test_an_empty_image_is_named(tmp_path: Path) -> None:
    config = image_folder(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat/0\.png, 0 bytes"):
        load_data(config, 0)


def test_a_folder_without_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected folders train and test"):
        load_data(image_folder(tmp_path, ("train",)), 0)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    config = image_folder(tmp_path)
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(UserError, match="bird"):
        load_data(config, 0)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    config = image_folder(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="emu without an image"):
        load_data(config, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_a_run_leaves_the_decoders_at_work(tmp_path: Path, number: int) -> None:
    config = image_folder(tmp_path, count=24)
    config.workers = 1
    pixels = load_data(config, 0).test.pixels
    batches = pixels.stream(torch.arange(48).split(4))
    seen = len(next(batches)[1])
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert seen + sum(len(labels) for _, labels in batches) == 48
