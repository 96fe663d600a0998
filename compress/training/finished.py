"""The finished trainings of a stage that has several: a restart takes over their weights and trains on after them."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.training.checkpoint import State
from compress.training.state import TrainState


@dataclass(frozen=True)
class FinishedTraining:
    """What `TrainState.restore` needs of a training that another one of its stage follows."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    @property
    def steps(self) -> int:
        """Returns how many steps it took."""
        return len(self.tensors["losses.steps"])

    @property
    def rows(self) -> list[dict[str, float]]:
        """Returns its rows, an epoch each."""
        return self.values["rows"]


def finish(training: TrainState) -> FinishedTraining:
    """Copies the kept weights, the random states and the progress of a training after its last epoch."""
    tensors = {name: value.detach().cpu().clone() for name, value in training.finished_tensors().items()}
    return FinishedTraining(tensors, copy.deepcopy(training.values()))


def pack(finished: list[FinishedTraining], training: TrainState) -> State:
    """Returns the state of a stage, as one file holds it: its finished trainings and the one under way."""
    tensors = training.tensors()
    for number, each in enumerate(finished):
        tensors |= {f"finished.{number}.{name}": value for name, value in each.tensors.items()}
    return tensors, training.values() | {"finished": [each.values for each in finished]}


def unpack(state: State, number: int) -> State | None:
    """Returns the state of training `number` of a stage, the first is 0; None where the stage had not begun it."""
    tensors, values = state
    finished = values["finished"]
    if number < len(finished):
        prefix = f"finished.{number}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        return own, finished[number]
    if number > len(finished):
        return None
    return {name: value for name, value in tensors.items() if not name.startswith("finished.")}, values
