"""The balanced sampler: as many images of each class, none much more often than another, the same for a seed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.dataset import balanced_sample
from compress.utils.errors import UserError

STRATA = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)


@pytest.mark.parametrize("seed", range(4))
def test_each_group_is_drawn_as_often_and_its_images_too(seed: int) -> None:
    drawn = balanced_sample(STRATA, torch.Generator().manual_seed(seed))
    assert torch.bincount(STRATA[drawn]).tolist() == [20, 20, 20]
    times = torch.bincount(drawn, minlength=len(STRATA))
    for group in range(3):
        own = times[group == STRATA]
        assert own.max() - own.min() <= 1
    assert torch.equal(drawn, balanced_sample(STRATA, torch.Generator().manual_seed(seed)))


def test_the_rest_goes_to_some_groups() -> None:
    drawn = balanced_sample(torch.tensor([0, 0, 0, 1, 2]), torch.Generator().manual_seed(0))
    assert sorted(torch.bincount(torch.tensor([0, 0, 0, 1, 2])[drawn]).tolist()) == [1, 2, 2]


def imbalanced(path: Path, labelled: bool = True) -> DataConfig:
    generator = np.random.default_rng(0)
    labels = np.array([0] * 40 + [1] * 8)
    arrays = {
        "train_images": generator.integers(0, 255, (48, 8, 8), dtype=np.uint8),
        "test_images": generator.integers(0, 255, (6, 8, 8), dtype=np.uint8),
        "test_labels": np.array([0, 1] * 3),
    }
    np.savez(path, **arrays, **({"train_labels": labels} if labelled else {}))
    return DataConfig("npz", str(path), image_size=8, batch_size=8, val_fraction=0.25, sampler="balanced")


def test_an_epoch_of_train_is_balanced_and_validation_is_not(tmp_path: Path) -> None:
    data = load_data(imbalanced(tmp_path / "set.npz"), 0)
    order = data.train.shuffle(torch.Generator().manual_seed(1))
    assert len(order) == len(data.train)
    assert torch.bincount(data.train.pixels.labels[order]).tolist() == [18, 18]
    assert torch.bincount(data.val.labels).tolist() == [10, 2]


def test_images_without_labels_cannot_be_balanced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sampler=balanced with train images without labels"):
        load_data(imbalanced(tmp_path / "set.npz", labelled=False), 0)
