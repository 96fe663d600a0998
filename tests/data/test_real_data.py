"""Published weights and official data give the published figures: the loaders neither bend images nor lose weights."""

from pathlib import Path

import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.models import Architecture, build
from compress.models.weights import load_checkpoint
from compress.training.validation import validate

DATASETS = Path(__file__).resolve().parents[3] / "shared" / "datasets"

pytestmark = pytest.mark.skipif(not DATASETS.is_dir(), reason=f"{DATASETS} is not there: it is no part of the project")


@pytest.mark.parametrize(("model", "top1"), [("resnet20", 91.64), ("resnet56", 92.72)])
def test_a_published_checkpoint_keeps_its_accuracy(model: str, top1: float) -> None:
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data = load_data(
        DataConfig(name="npz", root=str(DATASETS / "cifar10" / "cifar10_lossless_subset.npz"), **imagenet), 0
    )
    assert data.sizes["test"] == 1017
    network = build(Architecture(model, "small", 3, 10)).to(memory_format=torch.channels_last)
    load_checkpoint(network, str(next(DATASETS.glob(f"checkpoints/{model}-*.th"))))
    assert validate(network, data.test, torch.device("cpu")).score_percent == pytest.approx(top1, abs=0.11)


def test_fashion_mnist_is_read_as_torchvision_lays_it_out() -> None:
    data = load_data(DataConfig(name="fashion_mnist", root=str(DATASETS), image_size=28), 0)
    assert data.sizes == {"train": 54_000, "val": 6_000, "test": 10_000}
    assert data.classes[0] == "T-shirt/top"
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    # The mean and deviation of the official training images are 0.2860 and 0.3530.
    assert data.mean == pytest.approx([0.2860], abs=0.005)
    assert data.std == pytest.approx([0.3530], abs=0.005)
