"""What every stage may use besides its own settings."""

from dataclasses import dataclass, field

import torch

from compress.artifact import Artifact
from compress.checkpoint import Checkpoint
from compress.config import TrainConfig
from compress.curves import Curves
from compress.data.splits import Data


@dataclass
class Context:
    """The run around a stage. `teacher` is None in the stage that makes it."""

    data: Data
    teacher: Artifact | None
    train: TrainConfig
    device: torch.device
    seed: int  # the stage's own, drawn from the run's seed and the stage's name
    curves: Curves
    checkpoint: Checkpoint | None = None  # where its training is kept; None: a training that is stopped is lost
    floors: list[float] = field(default_factory=list)  # validation top-1 in percent, an epoch each: below it ends
