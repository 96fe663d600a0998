"""What every stage may use besides its own settings."""

from dataclasses import dataclass, field
from typing import Any

import torch

from compress.config.schema import TrainConfig
from compress.data.dataset import Data
from compress.models.artifact import Artifact
from compress.tasks import TASKS
from compress.tasks.base import Task
from compress.training.checkpoint import Checkpoint
from compress.training.distributed import ProcessGroup
from compress.training.tensorboard import TensorBoardWriter


@dataclass
class Context:
    """The run around a stage. `teacher` is None in the stage that makes it."""

    data: Data
    teacher: Artifact | None
    train: TrainConfig
    device: torch.device
    seed: int  # the stage's own, drawn from the run's seed and the stage's name
    curves: TensorBoardWriter
    checkpoint: Checkpoint | None = None  # where its training is kept; None: a training that is stopped is lost
    ranks: ProcessGroup = field(default_factory=ProcessGroup)  # the processes that train together
    notes: dict[str, Any] = field(default_factory=dict)  # for stage.json: what came up on the way
    floors: list[float] = field(default_factory=list)  # the validation metric in percent, an epoch each: below it ends

    @property
    def task(self) -> Task:
        """What the network's outputs mean."""
        return TASKS[self.data.task]
