"""A teacher's logits are those of its network, whether it is asked each time or once for all."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.config.schema import Config, TrainConfig
from compress.config.stage_settings import DistillConfig, QuantizeConfig
from compress.data import load_data
from compress.data.augmentation import Augmentation
from compress.data.dataset import Batch, Data
from compress.methods.distillation import teacher_logits as module
from compress.methods.distillation.teacher_logits import cached_logits, teacher_function
from compress.models import Architecture, build
from compress.models.artifact import Artifact
from compress.stages.distill import distill
from compress.stages.quantize import quantize
from compress.stages.teacher import teacher
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter

CPU = torch.device("cpu")


@pytest.fixture
def data(tiny_config: Config) -> Data:
    return load_data(tiny_config.data, 0)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build(Architecture("resnet8", "small", 1, 3)).eval()


def context_of(data: Data, network: nn.Module | None, augmentation: Augmentation) -> Context:
    given = Artifact(network, None) if network else None
    return Context(replace(data, augmentation=augmentation), given, TrainConfig(), CPU, 0, TensorBoardWriter(None))


def epoch(data: Data, augmentation: Augmentation) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    order = data.train.shuffle(generator)
    return [examples for examples, _ in data.train.augmented(order, generator, augmentation)]


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (1, False), (0, True)])
def test_they_are_the_networks(data: Data, network: nn.Module, padding: int, flip: bool) -> None:
    augmentation = Augmentation(padding, flip)
    teacher_fn = teacher_function(context_of(data, network, augmentation))
    for examples in epoch(data, augmentation):
        found = teacher_fn(examples)
        with torch.no_grad():
            torch.testing.assert_close(found, network(examples.images), rtol=1e-4, atol=1e-4)
        assert not found.requires_grad


@pytest.mark.parametrize(("padding", "most", "calls"), [(0, 2**30, 1), (1, 2**30, 2)])
def test_an_image_that_never_changes_is_shown_once(
    data: Data, network: nn.Module, monkeypatch: pytest.MonkeyPatch, padding: int, most: int, calls: int
) -> None:
    """In two epochs."""
    seen, augmentation = [], Augmentation(padding, False)
    monkeypatch.setattr(module, "_MAX_BYTES", most)
    monkeypatch.setattr(module, "fold_batch_norm", lambda network: network)
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    teacher_fn = teacher_function(context_of(data, network, augmentation))
    assert seen == []  # nor where no epoch comes
    shown = [teacher_fn(examples) for _ in range(2) for examples in epoch(data, augmentation)]
    assert sum(seen) == calls * len(data.train) == calls * sum(map(len, shown)) / 2


def test_outputs_that_are_too_large_are_computed_at_each_call(
    data: Data, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(module, "_MAX_BYTES", 1)
    monkeypatch.setattr(module, "fold_batch_norm", lambda network: network)
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    teacher_fn = teacher_function(context_of(data, network, Augmentation(0, False)))
    shown = [teacher_fn(examples) for _ in range(2) for examples in epoch(data, Augmentation(0, False))]
    first_batch = data.train.batch_size  # by which it learns their size
    assert sum(seen) == first_batch + sum(map(len, shown)) == first_batch + 2 * len(data.train)


def test_a_part_of_the_images_is_found_by_its_place(data: Data, network: nn.Module) -> None:
    """The train split is not all that was read, and a batch may come in parts."""
    teacher_fn = cached_logits(network, data.train, CPU)
    chosen = data.train.index[[5, 3, 11]]
    images, labels = next(data.train.pixels.stream([chosen]))
    with torch.no_grad():
        wanted = network(images.float().div(255).sub(data.train.mean).div(data.train.std))
    found = teacher_fn(Batch(images, labels, chosen))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["distill", "quantize"])
def test_a_stage_ends_with_nearly_the_same_weights(
    tiny_config: Config, data: Data, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    torch.manual_seed(0)
    context = context_of(data, None, Augmentation(0, False))
    context.teacher = teacher(None, replace(tiny_config.teacher, epochs=1), context)
    settings = {"distill": DistillConfig(epochs=1, lr=0.001), "quantize": QuantizeConfig(epochs=1, lr=0.001)}[stage]
    ends: list[dict[str, Tensor]] = []
    for most in (2**30, 1):
        monkeypatch.setattr(module, "_MAX_BYTES", most)
        torch.manual_seed(0)
        made = {"distill": distill, "quantize": quantize}[stage](copy.deepcopy(context.teacher), settings, context)
        ends.append(made.tensors())
    moved = {name: (value - ends[1][name]).abs().max() for name, value in ends[0].items() if value.is_floating_point()}
    assert max(moved.values()) < 1e-3
