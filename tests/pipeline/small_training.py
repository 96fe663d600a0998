"""A training of nine steps, and a process that dies while it saves the state of one."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.config.schema import TrainConfig
from compress.data.dataset import Data
from compress.methods.distillation.losses import label_loss
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.loop import LossFn, TrainSettings, train
from compress.training.tensorboard import TensorBoardWriter

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 3  # of the small training; each epoch is saved after every step, one validation batch and its end
SAVINGS = EPOCHS * (STEPS + 2)


class Killed(BaseException):
    """What a SIGKILL is to a process."""


def dying(path: Path, savings: int, key: str = "key") -> Checkpoint:
    """A checkpoint of every step whose process dies behind the last of so many `savings`."""
    checkpoint = Checkpoint(path, key, 0)
    save, done = checkpoint.save, []

    def save_and_die(*state) -> None:
        save(*state)
        done.append(1)
        if len(done) == savings:
            raise Killed

    checkpoint.save = save_and_die
    return checkpoint


def small_network(seed: int) -> nn.Module:
    """Batch norm, dropout and filters in channels_last: all that a state can hold."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(72, 3),
    )


def small_training(
    data: Data,
    folder: Path,
    checkpoint: Checkpoint | None,
    loss: LossFn | None = None,
    seed: int = 0,
    **settings: float | str,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The network and the history; `seed` is that of the weights and of every global random number."""
    network = small_network(seed)
    random.seed(seed)
    np.random.seed(seed)
    with TensorBoardWriter(folder) as curves:
        context = Context(data, None, TrainConfig(**settings), CPU, 5, curves, checkpoint)
        return network, train(network, loss or label_loss(0.0), context, TrainSettings("test", EPOCHS, 0.05))


def assert_equal(network: nn.Module, wanted: nn.Module) -> None:
    found, state = network.state_dict(), wanted.state_dict()
    assert [name for name in state if not torch.equal(found[name], state[name])] == []
