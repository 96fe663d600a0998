"""Fine-tuning: frozen blocks stay as they were to the bit, deep ones learn slowly, and a killed one goes on."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.config.schema import Config, TrainConfig
from compress.data import load_data
from compress.models import Architecture, build
from compress.stages.teacher import teacher
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.fine_tuning import blocks, layerwise_lr_scales
from compress.training.loop import _optimizer
from compress.training.tensorboard import TensorBoardWriter

IMAGE = torch.zeros(1, 1, 8, 8)


def resnet8() -> nn.Module:
    torch.manual_seed(0)
    return build(Architecture("resnet8", "small", 1, 3))


def fine_tuned(config: Config, folder: Path, checkpoint: Checkpoint | None = None) -> nn.Module:
    with TensorBoardWriter(folder / "curves") as curves:
        data = load_data(config.data, config.seed)
        context = Context(data, None, config.train, torch.device("cpu"), 1, curves, checkpoint)
        return teacher(None, config.teacher, context).network


@pytest.fixture
def config(tiny_config: Config, tmp_path: Path) -> Config:
    """Two epochs from a checkpoint, the first of them for the last layer alone."""
    torch.save(resnet8().state_dict(), tmp_path / "pretrained.pth")
    tiny_config.teacher.checkpoint = str(tmp_path / "pretrained.pth")
    tiny_config.teacher.epochs, tiny_config.teacher.freeze_epochs = 2, 1
    return tiny_config


def test_blocks_come_in_the_order_of_the_image() -> None:
    network = resnet8()
    names = {id(module): name for name, module in network.named_modules()}
    found = [names[id(part)] for part in blocks(network, IMAGE)]
    assert found == ["conv1", "bn1", "layer1.0", "layer2.0", "layer3.0", "linear"]


def test_the_learning_rate_falls_with_the_depth() -> None:
    network = resnet8()
    shares = layerwise_lr_scales(network, IMAGE, 0.5)
    assert shares["linear.weight"] == 1
    assert shares["layer3.0.conv1.weight"] == shares["layer3.0.bn2.bias"] == 0.5
    assert shares["conv1.weight"] == 0.5**5
    groups = _optimizer(network, 0.2, TrainConfig(), shares).param_groups
    assert groups[0]["lr"] == 0.2
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    assert {name: rates[id(value)] / 0.2 for name, value in network.named_parameters()} == pytest.approx(shares)


def test_frozen_blocks_stay_as_they_were(config: Config, tmp_path: Path) -> None:
    config.teacher.epochs = 1
    before, after = resnet8().state_dict(), fine_tuned(config, tmp_path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"linear.weight", "linear.bias"}


def test_behind_the_frozen_epochs_all_blocks_learn(config: Config, tmp_path: Path) -> None:
    network = fine_tuned(config, tmp_path)
    assert all(value.requires_grad for value in network.parameters())
    before, after = resnet8().state_dict(), network.state_dict()
    assert {name for name in before if torch.equal(before[name], after[name])} == set()


def test_a_deep_layer_moves_less_where_the_rate_decays(config: Config, tmp_path: Path) -> None:
    config.teacher.freeze_epochs = 0
    before, moved = resnet8().state_dict(), {}
    for decay in (1.0, 0.1):
        config.teacher.lr_decay = decay
        after = fine_tuned(config, tmp_path / str(decay)).state_dict()
        moved[decay] = {name: (after[name] - before[name]).norm().item() for name in ("conv1.weight", "linear.weight")}
    assert moved[0.1]["conv1.weight"] < 0.01 * moved[1.0]["conv1.weight"]
    assert moved[0.1]["linear.weight"] > 0.3 * moved[1.0]["linear.weight"]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_fine_tuning_ends_the_same(config: Config, tmp_path: Path, step: int) -> None:
    """In its frozen epoch, at its end and behind it (3 steps an epoch)."""
    config.teacher.lr_decay = 0.5
    wanted = fine_tuned(copy.deepcopy(config), tmp_path).state_dict()
    saved = tmp_path / f"training_{step}"
    first = Checkpoint(saved, "key", 0)
    save, count = first.save, iter(range(1, 100))

    def save_and_die(*state) -> None:
        save(*state)
        if next(count) == step:
            raise KeyboardInterrupt

    first.save = save_and_die
    with pytest.raises(KeyboardInterrupt):
        fine_tuned(config, tmp_path, first)
    found = fine_tuned(config, tmp_path, Checkpoint(saved, "key", 0)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
