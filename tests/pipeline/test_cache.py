"""The store: what goes in comes out byte for byte, and nothing that changed in between does."""

import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from compress.pipeline.cache import Cache
from compress.utils.files import STAGE, finish_stage, read_json

KEY, OTHER = "ab" * 32, "cd" * 32


def compute_and_evaluate(folder: Path, key: str = KEY, fill: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(fill * 100)
    (folder / "metrics.json").write_text('{"figure": 1}')
    record = {"key": key, "inputs": {"stage": "teacher"}, "config": {"teacher": {"model": "tiny"}}, "duration_s": 1.0}
    finish_stage(folder, record)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_was_put_is_taken(cache: Cache, tmp_path: Path) -> None:
    stage = compute_and_evaluate(tmp_path / "made")
    assert cache.fetch(KEY, tmp_path / "taken") is None
    cache.store(KEY, stage)
    record = cache.fetch(KEY, tmp_path / "taken")
    assert record == read_json(stage / STAGE)
    names = sorted(path.name for path in (tmp_path / "taken").iterdir())
    assert names == ["metrics.json", "model.safetensors"]  # stage.json is the run's own
    for name in names:
        assert (tmp_path / "taken" / name).samefile(stage / name)
    assert cache.fetch(OTHER, tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_a_copy_serves_where_files_cannot_have_two_names(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_link)
    stage = compute_and_evaluate(tmp_path / "made")
    cache.store(KEY, stage)
    assert cache.fetch(KEY, tmp_path / "taken")["key"] == KEY
    assert (tmp_path / "taken" / "metrics.json").read_bytes() == (stage / "metrics.json").read_bytes()


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_stage_is_set_aside(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """A flipped bit, a cut or a missing file, in any file, stage.json among them."""
    cache.store(KEY, compute_and_evaluate(tmp_path / "made"))
    chance = random.Random(seed)
    path = chance.choice(sorted((cache.folder / KEY[:2] / KEY).iterdir()))
    content = bytearray(path.read_bytes())
    damage = chance.choice(["flip", "cut", "remove"])
    path.unlink()
    if damage == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    if damage != "remove":
        path.write_bytes(content[: chance.randrange(len(content))] if damage == "cut" else content)
    assert cache.fetch(KEY, tmp_path / "taken") is None
    assert not (tmp_path / "taken").exists()
    if path.name != STAGE or damage != "remove":
        assert "is not as it was written" in caplog.text
        assert len(list((cache.folder / "damaged").iterdir())) == 1
        assert not (cache.folder / KEY[:2] / KEY).exists()
    cache.store(KEY, tmp_path / "made")
    assert cache.fetch(KEY, tmp_path / "taken") is not None


def test_another_stage_in_its_place_is_not_taken(cache: Cache, tmp_path: Path) -> None:
    cache.store(KEY, compute_and_evaluate(tmp_path / "made", key=OTHER))
    assert cache.fetch(KEY, tmp_path / "taken") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_read(cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.store(KEY, compute_and_evaluate(tmp_path / "made"))
    cache.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with cache.compute_once(KEY):
        assert cache.fetch(KEY, tmp_path / "taken") is not None
        cache.store(OTHER, compute_and_evaluate(tmp_path / "other", key=OTHER))
    cache.folder.chmod(stat.S_IRWXU)
    assert "this stage is not in the cache" in caplog.text
    assert [entry.key for entry in cache.entries()] == [KEY]


def test_a_full_disk_costs_only_the_next_run(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    cache.store(KEY, compute_and_evaluate(tmp_path / "made"))
    assert "No space left on device" in caplog.text
    assert not list(cache.folder.rglob(STAGE))
    assert not list((cache.folder / "unfinished").iterdir())


def test_pruning_removes_what_was_used_longest_ago(cache: Cache, tmp_path: Path) -> None:
    keys = [f"{number:02x}" * 32 for number in range(4)]
    for age, key in enumerate(keys):
        cache.store(key, compute_and_evaluate(tmp_path / key, key))
        os.utime(cache.folder / key[:2] / key, (1000 - age, 1000 - age))
    cache.fetch(keys[3], tmp_path / "taken")  # the oldest, used now
    entries = cache.entries()
    assert [entry.key for entry in entries] == [keys[3], keys[0], keys[1], keys[2]]
    size = entries[0].size_bytes
    assert [entry.key for entry in cache.prune(2 * size)] == [keys[2], keys[1]]
    assert [entry.key for entry in cache.entries()] == [keys[3], keys[0]]
    assert (tmp_path / keys[1] / "metrics.json").is_file()  # a run's files stay
    assert cache.prune(2 * size) == []


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "compress.cache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_lists_verifies_and_prunes(cache: Cache, tmp_path: Path) -> None:
    for key in (KEY, OTHER):
        cache.store(key, compute_and_evaluate(tmp_path / key, key))
    listed = run("--dir", cache.folder, "list")
    assert listed.returncode == 0, listed.stderr
    for part in (KEY[:12], OTHER[:12], "teacher", "tiny", "2 stages"):
        assert part in listed.stdout
    verified = run("--dir", cache.folder, "verify")
    assert (verified.returncode, verified.stdout) == (0, "2 stages are whole, 0 are not\n")
    (cache.folder / KEY[:2] / KEY / "metrics.json").write_text("{}")
    verified = run("--dir", cache.folder, "verify")
    assert verified.returncode == 1
    assert verified.stdout.startswith("1 stages are whole, 1 are not\nset aside: ")
    pruned = run("--dir", cache.folder, "prune", "--max-gb", "0")
    assert pruned.returncode == 0, pruned.stderr
    assert "left: 0 B" in pruned.stdout
    assert cache.entries() == []
