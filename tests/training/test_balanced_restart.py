"""A training with the balanced sampler that is killed within an epoch ends with the weights of one that is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.data import load_data
from compress.data.dataset import Data
from compress.training.checkpoint import Checkpoint
from tests.data.test_balanced_sample import imbalanced
from tests.pipeline.small_training import STEPS, Killed, assert_equal, dying, small_training


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """36 train images of two classes, 30 and 6, in three batches."""
    data = load_data(imbalanced(tmp_path / "set.npz"), 0)
    return replace(data, train=replace(data.train, batch_size=12))


@pytest.mark.parametrize("savings", [1, STEPS - 1, STEPS + 3])
def test_a_restart_draws_the_same_images(data: Data, tmp_path: Path, savings: int) -> None:
    whole, history = small_training(data, tmp_path / "curves", None)
    with pytest.raises(Killed):
        small_training(data, tmp_path / "curves", dying(tmp_path / "state", savings))
    network, resumed = small_training(data, tmp_path / "curves", Checkpoint(tmp_path / "state", "key", 10), seed=7)
    assert_equal(network, whole)
    assert resumed == history


def test_another_sampler_trains_another_network(data: Data, tmp_path: Path) -> None:
    balanced, _ = small_training(data, tmp_path / "curves", None)
    plain, _ = small_training(replace(data, train=replace(data.train, strata=None)), tmp_path / "curves", None)
    assert not torch.equal(balanced[0].weight, plain[0].weight)
