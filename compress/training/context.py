"""The context of a stage: what it may use besides its own settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compress.config.schema import MeasureConfig, TrainConfig
from compress.config.stage_settings import QuantizeConfig
from compress.data.dataset import Data
from compress.models.artifact import Artifact
from compress.tasks import TASKS
from compress.tasks.base import Task
from compress.training.checkpoint import Checkpoint
from compress.training.distributed import ProcessGroup
from compress.training.finished import FinishedTraining
from compress.training.tensorboard import TensorBoardWriter


@dataclass(frozen=True)
class Shipping:
    """How the last file of a run is made and timed, for stages that are to meet a limit on it."""

    quantize: QuantizeConfig | None  # null: it stays float
    measure: MeasureConfig
    threads: int
    latency_dir: Path | None  # where times of layers are kept; None: they are not


@dataclass
class Context:
    """The run around a stage. `teacher` is None in the stage that makes it."""

    data: Data
    teacher: Artifact | None
    train: TrainConfig
    device: torch.device
    seed: int  # the stage's own, drawn from the run's seed and the stage's name
    curves: TensorBoardWriter
    checkpoint: Checkpoint | None = None  # where its training is saved; None: a training that is stopped is lost
    ranks: ProcessGroup = field(default_factory=ProcessGroup)  # the processes that train together
    finished: list[FinishedTraining] = field(default_factory=list)  # of the stage, in order; `train` adds them
    notes: dict[str, Any] = field(default_factory=dict)  # for stage.json: what the stage found
    min_val_metric: list[float] = field(default_factory=list)  # in percent, an epoch each: a training below it ends
    search_dir: Path | None = None  # where a stage keeps what it searched, for other settings too; None: it does not
    shipping: Shipping | None = None  # None: no stage has to meet a limit on the last file

    @cached_property
    def task(self) -> Task:
        """Returns what the network's outputs mean, and the training loss of labels, as `train.class_weights` asks.

        Images without labels are balanced by the teacher's answers. The stage teacher, which has none, trains nothing.
        """
        task, weights = TASKS[self.data.task], self.train.class_weights
        if weights == "none" or not self.data.labelled:
            return task
        if weights == "balanced":
            return task.balanced(self.data.train.labels, len(self.data.classes))
        return task.weighted(torch.tensor(weights, dtype=torch.float32))

    def decide(self, name: str, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns what `choose` returns, values of JSON; a restart takes what the first start chose.

        All processes get the same, and go on with the same random numbers as without a choice.
        """

        def decide() -> dict[str, Any]:
            with torch.random.fork_rng(devices=[]):  # a restart, which does not choose again, then trains alike
                return choose()

        checkpoint = self.checkpoint
        if checkpoint is None:
            return decide()
        return self.ranks.rank_zero_first(lambda: checkpoint.decide(name, decide)) or {}
