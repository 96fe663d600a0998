"""The manifest of a folder: content decides the fingerprint, and only new and changed files are read again."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data, manifest
from compress.data.file_facts import FileFacts, read_facts
from compress.utils.errors import UserError

Fingerprint = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three images each, in train and test; written an hour ago."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 255, (8, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / label / f"{number}.bmp")
    _make_old(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read to their end."""
    found: list[str] = []

    def noted(path: str) -> FileFacts:
        found.append(path)
        return read_facts(path)

    noted.__name__ = read_facts.__name__  # a manifest is of one way to read
    monkeypatch.setattr(manifest, "read_facts", noted)
    return found


def fingerprint(root: Path, manifests: Path | None = None, name: str = "imagefolder") -> str:
    task = "classification" if name == "imagefolder" else "detection"
    config = DataConfig(name=name, root=str(root), image_size=8, workers=0, task=task)
    return load_data(config, 0, manifests).fingerprint


def _make_old(folder: Path) -> None:
    hour_ns = 3600 * 1_000_000_000
    for path in folder.rglob("*"):
        found = path.stat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - hour_ns))


def test_the_second_start_reads_no_file_and_finds_the_same(root: Path, tmp_path: Path, reads: list[str]) -> None:
    first = fingerprint(root, tmp_path / "manifests")
    assert len(reads) == 12
    reads.clear()
    assert fingerprint(root, tmp_path / "manifests") == first
    assert reads == []
    assert fingerprint(root) == first  # without a manifest
    assert len(reads) == 12


def test_a_copy_elsewhere_has_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    manifests = tmp_path / "manifests"
    assert fingerprint(root, manifests) == fingerprint(tmp_path / "copy", manifests)
    assert len(list(manifests.iterdir())) == 2


def test_one_manifest_serves_each_name_of_a_root(
    root: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(root)
    first = fingerprint(root, tmp_path / "manifests")
    reads.clear()
    assert fingerprint(tmp_path / "link", tmp_path / "manifests") == first
    monkeypatch.chdir(tmp_path)
    assert fingerprint(Path("set"), tmp_path / "manifests") == first
    assert reads == []


@pytest.mark.parametrize("keeps_time", [False, True])
def test_another_content_of_the_same_size_is_another_fingerprint(
    root: Path, tmp_path: Path, reads: list[str], keeps_time: bool
) -> None:
    first = fingerprint(root, tmp_path / "manifests")
    reads.clear()
    path = root / "train" / "dog" / "1.bmp"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    if keeps_time:  # the time of the change of its state is left
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert fingerprint(root, tmp_path / "manifests") != first
    assert reads == [str(path)]


def test_names_are_part_of_the_fingerprint(root: Path, tmp_path: Path, reads: list[str]) -> None:
    first = fingerprint(root, tmp_path / "manifests")
    reads.clear()
    (root / "train" / "dog" / "1.bmp").rename(root / "train" / "dog" / "9.bmp")
    assert fingerprint(root, tmp_path / "manifests") != first
    assert reads == [str(root / "train" / "dog" / "9.bmp")]


def test_a_file_that_was_just_written_is_read_again(root: Path, tmp_path: Path, reads: list[str]) -> None:
    path = root / "train" / "dog" / "1.bmp"
    _make_old(root)
    os.utime(path, (2**32, 2**32))  # still young whenever this test runs
    fingerprint(root, tmp_path / "manifests")
    reads.clear()
    fingerprint(root, tmp_path / "manifests")
    assert reads == [str(path)]


@pytest.mark.parametrize("damage", ["cut off", "another byte", "another version", "no manifest", "empty"])
def test_a_damaged_manifest_is_made_anew(
    root: Path, tmp_path: Path, reads: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = fingerprint(root, tmp_path / "manifests")
    (file,) = (tmp_path / "manifests").iterdir()
    whole = file.read_bytes()
    damaged = {
        "cut off": whole[:-40],
        "another byte": whole[:-40] + b"0" + whole[-39:],
        "another version": whole.replace(b"-manifest-1", b"-manifest-0"),
        "no manifest": b"\xff\x00{",
        "empty": b"",
    }[damage]
    file.write_bytes(damaged)
    reads.clear()
    with caplog.at_level(logging.WARNING, "compress"):
        assert fingerprint(root, tmp_path / "manifests") == first
    assert "damaged, or of another version" in caplog.text
    assert len(reads) == 12
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_stops_nothing(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "manifests").write_bytes(b"a file in the way")
    with caplog.at_level(logging.WARNING, "compress"):
        assert fingerprint(root, tmp_path / "manifests") == fingerprint(root)
    assert "the next start reads all image files again" in caplog.text


def test_what_was_read_before_a_broken_file_is_not_read_again(
    root: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_CHUNK", 1)
    path = root / "test" / "dog" / "2.bmp"
    whole = path.read_bytes()
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/2\.bmp: cannot identify"):
        fingerprint(root, tmp_path / "manifests")
    path.write_bytes(whole)
    reads.clear()
    fingerprint(root, tmp_path / "manifests")
    assert reads == [str(path)]


def test_the_second_start_warns_as_the_first(
    root: Path, tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("L", (9, 9), grey) for grey in (10, 200)]
    frames[0].save(root / "test" / "cat" / "a.gif", save_all=True, append_images=frames[1:])
    _make_old(root)
    texts = []
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "compress"):
            fingerprint(root, tmp_path / "manifests")
        texts.append(caplog.messages)
        caplog.clear()
    assert "read the first frame of 1 that have several (test/cat/a.gif)" in texts[0][0]
    assert texts[0] == texts[1]
    assert len(reads) == 13


def test_eight_bits_in_sixteen_are_refused_each_time(root: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 200, np.uint16)).save(root / "test" / "cat" / "deep.png")
    _make_old(root)
    for _ in range(2):
        with pytest.raises(UserError, match=r"cat/deep\.png and 0 more, 16-bit images with values up to 200"):
            fingerprint(root, tmp_path / "manifests")


def test_images_with_boxes_are_remembered_with_their_sizes(tmp_path: Path, reads: list[str]) -> None:
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    for number in range(8):
        image = Image.new("RGB", (20, 10), (number, 0, 0))
        exif = image.getexif()
        exif[0x0112] = 6  # turned
        image.save(root / "JPEGImages" / f"{number}.jpg", exif=exif)
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        (root / "Annotations" / f"{number}.xml").write_text(
            "<annotation><size><width>10</width><height>20</height></size>"
            f"<object><name>{'ab'[number % 2]}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    _make_old(root)
    first = fingerprint(root, tmp_path / "manifests", "voc")
    assert len(reads) == 8
    assert fingerprint(root, tmp_path / "manifests", "voc") == first
    assert len(reads) == 8
