"""Bits that flip and files that end early, anywhere in a run or in the cache: each is noticed."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from compress.config.schema import CacheConfig
from compress.pipeline.run import run_pipeline
from compress.utils.files import STAGE, finished_stage, read_json
from tests.conftest import make_tiny_config

pytestmark = pytest.mark.e2e

FAULTS = 200


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> dict[Path, str]:
    """The folder and the key of each stage of a run, and of each in its cache; whole, all of them."""
    folder = tmp_path_factory.mktemp("damage")
    config = make_tiny_config(tiny_npz)
    config = replace(config, quantize=replace(config.quantize, mode="ptq"), cache=CacheConfig(str(folder / "cache")))
    config.teacher.model = "plain"
    run_pipeline(config, folder / "run")
    found = {path.parent: read_json(path)["key"] for path in sorted(folder.rglob(STAGE))}
    assert len(found) == 8
    assert all(finished_stage(stage, key) for stage, key in found.items())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_damage_is_noticed(stages: dict[Path, str], seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(FAULTS // 4):
        stage = chance.choice(list(stages))
        path = chance.choice(sorted(stage.iterdir()))
        content = path.read_bytes()
        damaged = bytearray(content)
        if chance.random() < 0.5:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        assert finished_stage(stage, stages[stage]) is None, f"{path.name} of {len(content)} bytes"
        path.write_bytes(content)
        assert finished_stage(stage, stages[stage])
