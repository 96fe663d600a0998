"""Folders as users have them: every image that Pillow decodes is read, and what is left out is counted and named."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.data.listing import image_suffixes
from compress.utils.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with four images each, in train and test."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    return tmp_path


def load(root: Path, **settings: object) -> Data:
    return load_data(DataConfig(name="imagefolder", root=str(root), image_size=16, workers=0, **settings), 0)


def sizes(root: Path) -> tuple[int, int]:
    data = load(root)
    return len(data.train) + len(data.val), len(data.test)


def test_hidden_files_and_folders_are_no_images_and_no_classes(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (".ipynb_checkpoints", "__MACOSX", "cat/.thumbnails", ".Trash/dog"):
        (root / "train" / folder).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / "train" / folder / "0.png")
    (root / "test" / "dog" / "._0.png").write_bytes(b"no image")
    (root / "test" / ".DS_Store").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, "compress"):
        data = load(root)
    assert data.classes == ["cat", "dog"]
    assert data.sizes == {"train": 6, "val": 2, "test": 8}
    (line,) = [record.getMessage() for record in caplog.records if "hidden" in record.getMessage()]
    assert "left out 6 that are hidden" in line
    assert ".ipynb_checkpoints" in line


def test_what_is_left_out_is_counted_and_named_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/notes.txt", "train/cat/0.json", "train/cat/a.heic", "test/dog/b.heic", "labels.csv"):
        (root / name).write_bytes(b"something")
    (root / "valid").mkdir()
    Image.new("RGB", (9, 9)).save(root / "train" / "stray.png")
    with caplog.at_level(logging.WARNING, "compress"):
        assert sizes(root) == (8, 8)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data.root: left out 7 that are no images of a split or class (labels.csv, valid, train/")
    assert line.endswith(", ...)")


def test_every_suffix_that_pillow_decodes_is_read(root: Path) -> None:
    image = Image.new("RGB", (9, 9), (200, 10, 10))
    written = ["a.gif", "b.JFIF", "c.tga", "d.jp2", "e.Tif", "f.bmp", "g.webp", "h.ppm", "i.dib", "j.ico", "k.pcx"]
    for name in written:
        image.save(root / "test" / "cat" / name)
    (root / "test" / "cat" / "deeper" / "still").mkdir(parents=True)
    image.save(root / "test" / "cat" / "deeper" / "still" / "l.png")
    assert sizes(root) == (8, 8 + len(written) + 1)
    assert {".avif", ".jpeg"} <= image_suffixes()
    assert not {".pdf", ".h5", ".mpg", ".eps", ".npy"} & image_suffixes()


def test_links_are_followed_and_dangling_ones_named(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (9, 9)).save(elsewhere / "a.png")
    (root / "test" / "cat" / "linked").symlink_to(elsewhere)
    (root / "test" / "cat" / "round").symlink_to(root / "test" / "cat")  # a circle
    (root / "train" / "dog" / "b.png").symlink_to(elsewhere / "a.png")
    assert sizes(root) == (9, 9)
    (elsewhere / "a.png").unlink()
    with pytest.raises(UserError, match=r"1 links that lead nowhere: .*train/dog/b\.png"):
        load(root)
    (root / "train" / "dog" / "b.png").unlink()
    (root / "train" / "emu").symlink_to(root / "nowhere")  # a whole class
    with pytest.raises(UserError, match=r"links that lead nowhere: .*train/emu"):
        load(root)


def test_a_file_that_is_no_image_is_named_before_training(root: Path) -> None:
    (root / "test" / "cat" / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"test/cat/page\.jpg: cannot identify"):
        load(root)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_file_that_is_cut_off_is_named_before_training(root: Path, suffix: str) -> None:
    path = root / "test" / "cat" / f"photo.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content + bytes(2000))  # a tail does no harm
    assert len(load(root).test) == 9
    path.write_bytes(content[:-200])
    with pytest.raises(UserError, match=rf"test/cat/photo\.{suffix}: "):
        load(root)


def test_a_folder_without_images_says_what_it_has(root: Path) -> None:
    (root / "train" / "emu").mkdir()
    (root / "train" / "emu" / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"emu without an image, with a\.heic"):
        load(root)
    os.mkfifo(root / "train" / "emu" / "pipe.png")
    with pytest.raises(UserError, match="emu without an image"):
        load(root)


def test_a_class_that_train_lacks_is_answered_with_the_nearest(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "Dog")
    with pytest.raises(UserError, match=r"test/Dog; expected one of train's: cat, dog; .* did you mean dog\?"):
        load(root)


def test_a_test_split_without_one_of_the_classes_keeps_their_numbers(root: Path) -> None:
    for path in (root / "test" / "cat").iterdir():
        path.unlink()
    (root / "test" / "cat").rmdir()
    assert load(root).test.labels.tolist() == [1, 1, 1, 1]


def test_frames_behind_the_first_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("L", (9, 9), grey) for grey in (10, 200)]
    for name in ("a.gif", "b.tif"):
        frames[0].save(root / "test" / "cat" / name, save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, "compress"):
        load(root)
    assert "read the first frame of 2 that have several (test/cat/a.gif, test/cat/b.tif)" in caplog.text


def test_eight_bits_in_sixteen_are_refused(root: Path) -> None:
    for split in ("train", "test"):
        for path in (root / split).rglob("*.png"):
            Image.fromarray(np.full((9, 9), 200, np.uint16)).save(path)
    with pytest.raises(UserError, match=r"16-bit images with values up to 200"):
        load(root)
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(root / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match=r"test/cat/0\.png and 7 more"):
        load(root)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_channels_of_files_can_be_chosen(root: Path, channels: int) -> None:
    for path in root.rglob("*.png"):
        Image.open(path).convert("RGBA").save(path)
    data = load(root, channels=channels)
    assert data.shape == (channels, 16, 16)
    assert len(data.mean) == channels
    assert next(data.test.batches())[0].shape[1] == channels


def test_a_batch_may_mix_eight_and_sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((20, 30), 32768, np.uint16)).save(root / "test" / "cat" / "0.png")
    images = next(load(root).test.pixels.stream([torch.arange(8)]))[0]
    assert images.dtype == torch.float32
    assert images[0].unique().tolist() == [pytest.approx(32768 / 257)]
    assert images[1:].max() > 200
