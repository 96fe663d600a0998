"""The penalty that a training adds to the gradients of its loss."""

from typing import Protocol

from torch import Tensor


class GradientPenalty(Protocol):
    """Changes the gradients of every step, alike in all processes; its tensors are saved with the training."""

    def start_epoch(self, epoch: int) -> None:
        """Prepares epoch `epoch`, the first is 1; after a restart it is called again for the epoch under way."""
        ...

    def add_gradients(self) -> None:
        """Adds the penalty's gradient to that of the loss."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Returns what changes from step to step, by name."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `tensors` returned."""
        ...
