"""A teacher on augmented and mixed images that is killed within an epoch ends with the weights of one that is not."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.config.schema import Config
from compress.data import load_data
from compress.stages.teacher import teacher
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter
from tests.conftest import make_tiny_config
from tests.pipeline.small_training import CPU, Killed, assert_equal, dying


@pytest.fixture(scope="module")
def config(tiny_npz: Path) -> Config:
    """Two epochs of two steps."""
    config = make_tiny_config(tiny_npz)
    config.data.batch_size, config.teacher.epochs = 48, 2
    config.data.augment, config.train.mixup, config.train.cutmix = "strong", 0.4, 1.0
    return config


def trained(config: Config, checkpoint: Checkpoint | None = None) -> nn.Module:
    torch.manual_seed(3)
    context = Context(load_data(config.data, 0), None, config.train, CPU, 0, TensorBoardWriter(None), checkpoint)
    return teacher(None, config.teacher, context).network


@pytest.mark.parametrize("savings", [1, 5])
def test_a_restart_ends_alike(config: Config, tmp_path: Path, savings: int) -> None:
    with pytest.raises(Killed):
        trained(config, dying(tmp_path / "state", savings))
    assert_equal(trained(config, Checkpoint(tmp_path / "state", "key", 10)), trained(config))
