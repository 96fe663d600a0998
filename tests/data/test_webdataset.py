"""Shards: the same images and labels as in folders, windows of shards, and errors that name the tar and the member."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.data.shards import WINDOW, windowed_order
from compress.data.webdataset import _scratch_folder
from compress.training.distributed import ProcessGroup
from compress.utils.errors import UserError

Files = list[tuple[str, bytes]]


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def samples(numbers: Sequence[int], label: Callable[[int], tuple[str, bytes]]) -> Files:
    """An image and its label for each number."""
    return [file for at in numbers for file in ((f"{at:04}.png", png(at)), (f"{at:04}{label(at)[0]}", label(at)[1]))]


def as_cls(at: int) -> tuple[str, bytes]:
    return ".cls", str(at % 3).encode()


def write_tar(path: Path, files: Files) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_shards(root: Path, label: Callable[[int], tuple[str, bytes]] = as_cls) -> DataConfig:
    """Four shards of train and two of test, six images each."""
    root.mkdir(exist_ok=True)
    for shard in range(6):
        split = "train" if shard < 4 else "test"
        write_tar(root / f"{split}-{shard:03}.tar", samples(range(6 * shard, 6 * shard + 6), label))
    return DataConfig("webdataset", str(root), image_size=8, batch_size=4, workers=0, val_fraction=0.25)


def test_it_is_the_same_data_as_in_folders(tmp_path: Path) -> None:
    shards = load_data(write_shards(tmp_path / "shards"), 0)
    for at in range(36):
        place = tmp_path / "tree" / ("train" if at < 24 else "test") / str(at % 3)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{at:04}.png").write_bytes(png(at))
    folders = load_data(replace(write_shards(tmp_path / "shards"), name="imagefolder", root=str(tmp_path / "tree")), 0)
    assert shards.classes == folders.classes == ["0", "1", "2"]
    assert shards.sizes == folders.sizes
    assert content(shards) == pytest.approx(content(folders), abs=1e-4)


def content(data: Data) -> list[float]:
    """The sum of each test image's pixels, before it is normalised, by its label."""
    rows = []
    for images, labels in data.test.batches():
        plain = images * data.test.std + data.test.mean
        rows += zip(labels.tolist(), plain.double().sum((1, 2, 3)).tolist(), strict=True)
    return [value for row in sorted(rows) for value in row]


@pytest.mark.parametrize(
    "label",
    [
        lambda at: (".txt", ("cat", "dog", "emu")[at % 3].encode()),
        lambda at: (".json", json.dumps({"label": ("cat", "dog", "emu")[at % 3], "more": 1}).encode()),
    ],
)
def test_labels_may_be_names(tmp_path: Path, label: Callable[[int], tuple[str, bytes]]) -> None:
    data = load_data(write_shards(tmp_path, label), 0)
    assert data.classes == ["cat", "dog", "emu"]
    assert data.test.labels.tolist() == [at % 3 for at in range(24, 36)]


def test_several_labels(tmp_path: Path) -> None:
    label: Callable[[int], Any] = lambda at: (".json", json.dumps({"label": [at % 2, int(at % 3 == 0)]}).encode())
    data = load_data(replace(write_shards(tmp_path, label), task="multilabel"), 0)
    assert data.test.labels.tolist() == [[at % 2, int(at % 3 == 0)] for at in range(24, 36)]


@pytest.mark.parametrize(
    "pattern", ["{root}/train-{{000..003}}.tar", "{root}/train-00{{0,1,2,3}}.tar", "{root}/train*.tar"]
)
def test_patterns_name_the_same_files(tmp_path: Path, pattern: str) -> None:
    config = write_shards(tmp_path)
    named = replace(config, shards=[f"train={pattern.format(root=tmp_path)}", f"test={tmp_path}/test-{{004..005}}.tar"])
    assert load_data(named, 0).fingerprint == load_data(config, 0).fingerprint


def test_several_patterns_of_a_split_are_read_one_after_the_other(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    named = [
        f"train={tmp_path}/train-00{{0,1}}.tar",
        f"test={tmp_path}/test*.tar",
        f"train={tmp_path}/train-00{{2,3}}.tar",
    ]
    assert load_data(replace(config, shards=named), 0).fingerprint == load_data(config, 0).fingerprint


@pytest.mark.parametrize("name", ["data[1]", "data{a,b}"])
def test_the_name_of_the_folder_is_no_pattern(tmp_path: Path, name: str) -> None:
    assert load_data(write_shards(tmp_path / name), 0).sizes == {"train": 18, "val": 6, "test": 12}


def test_what_a_pipe_writes_is_kept(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    config.shards = [
        f"train=pipe:cat {tmp_path}/train-{{000..003}}.tar",
        f"test=pipe:cat {tmp_path}/test-{{004..005}}.tar",
    ]
    first = load_data(config, 0, tmp_path / "kept")
    for file in tmp_path.glob("t*.tar"):
        file.unlink()
    assert load_data(config, 0, tmp_path / "kept").fingerprint == first.fingerprint


def test_processes_that_start_together_run_a_pipe_once(tmp_path: Path) -> None:
    config, kept = write_shards(tmp_path), tmp_path / "kept"
    command = f"echo >> {tmp_path}/runs; sleep 0.1; cat {tmp_path}/train-000.tar"
    config.shards = [f"train=pipe:{command}", f"test={tmp_path}/test*.tar"]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: load_data(config, 0, kept).fingerprint, range(2))
    assert first == second
    assert (tmp_path / "runs").read_text() == "\n"


def test_without_a_cache_what_a_pipe_writes_is_in_a_folder_that_ends_with_the_process(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    config.shards = [f"train=pipe:cat {tmp_path}/train-000.tar", f"test={tmp_path}/test*.tar"]
    load_data(config, 0)
    scratch = Path(_scratch_folder().name)
    assert [file.suffix for file in scratch.iterdir()] == [".tar"]
    _scratch_folder().cleanup()
    _scratch_folder.cache_clear()


def test_a_pipe_that_fails_is_named(tmp_path: Path) -> None:
    config = replace(write_shards(tmp_path), shards=["train=pipe:cat nothing.tar", "test=pipe:true"])
    with pytest.raises(UserError, match=r"pipe:cat nothing\.tar, which ended with status 1: cat: nothing\.tar"):
        load_data(config, 0, tmp_path / "kept")


def test_a_second_start_reads_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_shards(tmp_path / "shards")
    monkeypatch.setattr("compress.data.manifest._TICK_NS", 0)
    first = load_data(config, 0, tmp_path / "kept")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a shard is read again")

    monkeypatch.setattr(tarfile, "open", refuse)
    assert load_data(config, 0, tmp_path / "kept").fingerprint == first.fingerprint


def test_the_fingerprint_changes_with_a_label_and_a_pixel(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    first = load_data(config, 0).fingerprint
    write_shards(tmp_path, lambda at: (".cls", str((at + (at == 0)) % 3).encode()))
    assert load_data(config, 0).fingerprint != first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.png", png(0))], r"train-000\.tar, a\.png: a sample of a\.png"),
        ([("a.cls", b"1")], r"train-000\.tar, a\.cls: a sample of a\.cls"),
        ([("a.png", png(0)), ("a.jpg", png(0)), ("a.cls", b"1")], "a sample of a.png, a.jpg, a.cls"),
        ([("a.png", png(0)[:60]), ("a.cls", b"1")], r"train-000\.tar, a\.png: .*"),
        ([("a.png", png(0)), ("a.cls", b"")], r"train-000\.tar, a\.cls: nothing"),
        ([("a.png", png(0)), ("a.json", b"{}")], r"train-000\.tar, a\.json: '\{\}'"),
        ([("a.png", png(0)), ("a.json", b'{"label": null}')], r"train-000\.tar, a\.json: .*null"),
    ],
)
def test_a_broken_sample_is_named(tmp_path: Path, files: Files, message: str) -> None:
    config = write_shards(tmp_path)
    write_tar(tmp_path / "train-000.tar", files)
    with pytest.raises(UserError, match=message):
        load_data(config, 0)


@pytest.mark.parametrize("change", [lambda content: content[:700], lambda content: b"no tar file" * 100])
def test_a_broken_shard_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    config = write_shards(tmp_path)
    shard = tmp_path / "train-002.tar"
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(UserError, match=r"train-002\.tar: .*a tar file that is whole"):
        load_data(config, 0)


@pytest.mark.parametrize("filler", [b"", b"\xff" * 512])
def test_a_shard_that_ends_between_two_members_is_not_taken_for_a_shorter_one(tmp_path: Path, filler: bytes) -> None:
    config = write_shards(tmp_path)
    shard = tmp_path / "train-002.tar"
    with tarfile.open(shard) as archive:
        offset = archive.getmembers()[4].offset
    shard.write_bytes(shard.read_bytes()[:offset] + filler)
    with pytest.raises(UserError, match=rf"train-002\.tar: damaged or cut off after 0013\.cls, at byte {offset}"):
        load_data(config, 0)


def test_a_shard_without_a_sample_is_named(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    write_tar(tmp_path / "train-002.tar", [])
    with pytest.raises(UserError, match=r"train-002\.tar without a sample"):
        load_data(config, 0)


def test_a_shard_that_shrinks_during_the_run_is_named(tmp_path: Path) -> None:
    data = load_data(write_shards(tmp_path), 0)
    (tmp_path / "test-005.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"0030\.png in .*test-005\.tar: the file has become shorter"):
        list(data.test.batches())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test=x.tar", "train=y.tar"], r"y\.tar is missing"),
        (["train={root}/train*.tar"], "without shards of test"),
        (["train={root}/train*.tar", "test={root}/train-000.tar"], r"train-000\.tar in train and in test"),
        (["all={root}/train*.tar"], "SPLIT=PATTERN"),
    ],
)
def test_wrong_patterns_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    config = replace(write_shards(tmp_path), shards=[name.format(root=tmp_path) for name in names])
    with pytest.raises(UserError, match=message):
        load_data(config, 0)


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_has_each_image_once_and_few_shards_at_a_time(seed: int) -> None:
    shards = torch.arange(50).repeat_interleave(20)
    order = windowed_order(shards, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, windowed_order(shards, torch.Generator().manual_seed(seed)))
    first = shards[order[: WINDOW * 20]]
    assert len(first.unique()) == WINDOW
    assert len(first[:100].unique()) > WINDOW // 2  # the images of a window are mixed
    assert sorted(first.unique().tolist()) != list(range(WINDOW))


def test_an_order_that_was_begun_goes_on_to_the_same_batches(tmp_path: Path) -> None:
    data = load_data(write_shards(tmp_path), 0)
    whole, rest = [], []
    for kept, done in ((whole, 0), (rest, 2)):
        generator = torch.Generator().manual_seed(3)
        order = data.train.shuffle(generator)
        for batch, _ in data.train.augmented(
            order, torch.Generator().manual_seed(9), replace(data.augmentation, crop_padding=0), done
        ):
            kept.append(batch.images)
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], rest, strict=True))


def test_two_processes_see_each_image_once_an_epoch(tmp_path: Path) -> None:
    data = load_data(write_shards(tmp_path), 0)
    plain = replace(data.augmentation, crop_padding=0, flip=False)
    seen = []
    for rank in (0, 1):
        order = data.train.shuffle(torch.Generator().manual_seed(3))
        shard = ProcessGroup(rank, 2).shard
        for batch, _ in data.train.augmented(order, torch.Generator(), plain, shard=shard):
            seen += batch.positions.tolist()
    skipped = len(data.train) % data.train.batch_size  # a last batch that is too small for batch norm
    assert len(seen) == len(set(seen)) == len(data.train) - (skipped if skipped < data.train.smallest_batch() else 0)
