"""Tiny data and settled networks: every network of the zoo goes through every stage on a handful of images."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from compress.config.data_settings import DataConfig
from compress.config.schema import TrainConfig
from compress.config.stage_settings import TeacherConfig
from compress.data import load_data
from compress.models import ZOO, Architecture, build
from compress.models.artifact import Artifact
from compress.stages.teacher import teacher
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter
from tests.conftest import tiny_arrays


def shallow_mobilevit(in_channels: int, classes: int) -> nn.Module:
    """MobileViT with one layer of attention a block, not two to four: to export all nine takes half a minute."""
    network = build(Architecture("mobilevit_xxs", "imagenet", in_channels, classes))
    for module in network.modules():
        if hasattr(module, "transformer"):
            module.transformer = module.transformer[:1]
    return network


ZOO["mobilevit_shallow"] = replace(ZOO["mobilevit_xxs"], own=shallow_mobilevit)
NAMES = list(ZOO)


def needs(*names: str) -> list[pytest.MarkDecorator]:
    """The marks of a test of these networks."""
    missing = find_spec("timm") is None and any(ZOO[name].timm for name in names)
    return [pytest.mark.skipif(missing, reason="timm is not installed")]


def networks(names: list[str], long: bool = False) -> list:
    """Names as parameters, each with what it needs."""
    return [pytest.param(name, marks=needs(name) + [pytest.mark.long] * long) for name in names]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """24 images to train on, 12 to validate, 12 to test: 16 x 16, in colour, three classes."""
    folder = tmp_path_factory.mktemp("zoo")
    arrays = {name: values[: 36 if name.startswith("train") else 12] for name, values in tiny_arrays().items()}
    images = {name: np.repeat(values[..., None], 3, 3) for name, values in arrays.items() if values.ndim == 3}
    np.savez(folder / "colour.npz", **arrays | images)
    config = DataConfig("npz", str(folder / "colour.npz"), image_size=16, batch_size=12, val_fraction=1 / 3)
    with TensorBoardWriter(folder / "curves") as curves:
        yield Context(load_data(config, 0), None, TrainConfig(), torch.device("cpu"), 0, curves)


@pytest.fixture
def settled(context: Context) -> Callable[[str], Artifact]:
    """A teacher by name: seeded weights, and batch-norm statistics as if it had been trained on the images."""

    def make(name: str) -> Artifact:
        torch.manual_seed(0)
        made = teacher(None, TeacherConfig(model=name, epochs=0), context)
        norms = [module for module in made.network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            made.network.train()(torch.cat([images for images, _ in context.data.train.batches()]))
        for norm in norms:
            norm.momentum = 0.1
        made.network.eval()
        context.teacher = made
        return made

    return make
