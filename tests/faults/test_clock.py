"""A clock that goes backwards, as after a correction: nothing waits for it, and what was used last is still known."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import CacheConfig
from compress.pipeline.cache import Cache
from compress.pipeline.run import run_pipeline
from compress.training.checkpoint import Checkpoint
from compress.utils.files import TRAINING
from tests.conftest import make_tiny_config
from tests.pipeline.test_cache import KEY, OTHER, compute_and_evaluate


@pytest.fixture(autouse=True)
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it an hour earlier."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * earlier()))


def test_a_run_ends_and_the_next_one_takes_its_stage(
    tiny_npz: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "compress")
    config = make_tiny_config(tiny_npz)
    config = replace(config, stages=["teacher"], cache=CacheConfig(str(tmp_path / "cache")))
    config.teacher.model = "plain"
    config.train.checkpoint_minutes = 1e-6
    run_pipeline(config, tmp_path / "first")
    run_pipeline(config, tmp_path / "second")
    assert caplog.text.count("teacher: starts") == caplog.text.count("taken from the cache") == 1
    assert not list(tmp_path.glob(f"*/*{TRAINING}*"))


def test_a_training_is_saved_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key", 10)
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + 601)
    assert checkpoint.is_due()
    checkpoint.save({"a": torch.ones(2)}, {})
    assert not checkpoint.is_due()


def test_what_was_used_last_stays_in_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for key in (KEY, OTHER):
        cache.store(key, compute_and_evaluate(tmp_path / key, key))
    assert [entry.key for entry in cache.entries()] == [OTHER, KEY]
    cache.fetch(KEY, tmp_path / "taken")
    assert [entry.key for entry in cache.entries()] == [KEY, OTHER]
    assert [entry.key for entry in cache.prune(cache.entries()[0].size_bytes)] == [OTHER]
