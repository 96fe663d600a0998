"""What tests of this folder share: data to train on, and one run of all stages."""

from pathlib import Path

import pytest

from compress.config.schema import Config
from compress.data import load_data
from compress.data.dataset import Data
from compress.pipeline.run import run_pipeline
from tests.conftest import make_tiny_config, real_measure, uncached


@pytest.fixture
def data(tiny_config: Config) -> Data:
    tiny_config.data.flip = True
    return load_data(tiny_config.data, 0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> Path:
    """One undisturbed run of all four stages."""
    folder = tmp_path_factory.mktemp("run")
    with real_measure():
        run_pipeline(uncached(make_tiny_config(tiny_npz)), folder)
    return folder
