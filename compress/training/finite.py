"""Refuses a training whose loss or weights are no longer finite: it cannot recover."""

import math

from compress.training.state import TrainState
from compress.utils.errors import UserError


def require_finite(what: str, value: float, step: int, training: TrainState) -> None:
    """Raises UserError, which names stage, epoch and step (the first is 1), for a NaN or an infinity."""
    if not math.isfinite(value):
        epoch = math.ceil(step / training.steps_per_epoch)
        raise UserError(
            f"{what} of {value} at step {step} of {training.steps} (epoch {epoch}) of {training.name}, "
            f"where the learning rate is {training.lr(step - 1):.3g}",
            "a finite one",
            f"lower {training.stage}.lr",
        )


def require_finite_weights(training: TrainState) -> None:
    """Raises UserError for a weight that is not finite: a finite loss can have a gradient that is not."""
    for parameter in training.network.parameters():
        require_finite("a weight", parameter.detach().abs().max().item(), training.step, training)
