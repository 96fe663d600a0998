"""Saves the state of a training under way: from time to time, and when a signal ends the run."""

from dataclasses import dataclass
from signal import Signals

from compress.training.checkpoint import Checkpoint
from compress.training.distributed import ProcessGroup
from compress.training.finished import FinishedTraining, pack
from compress.training.finite import require_finite_weights
from compress.training.state import TrainState
from compress.utils.errors import Interrupted


@dataclass(frozen=True)
class StateSaver:
    """Saves `training` to `checkpoint`; without one, nothing is saved and no signal is deferred."""

    training: TrainState
    checkpoint: Checkpoint | None
    ranks: ProcessGroup
    signals: list[Signals]  # those that have come since the training began
    finished: list[FinishedTraining]  # those of the stage before this one

    def save_if_due(self, now: bool = False) -> None:
        """Saves the state `now`, or where it is time or a signal has come; every process of a training calls it.

        Raises Interrupted after a signal, in all processes, and UserError in place of saving weights that are not
        finite: these must not take the place of the last good ones.
        """
        training, checkpoint = self.training, self.checkpoint
        due = checkpoint is not None and self.ranks.is_rank_zero and (now or checkpoint.is_due())
        signal, due_somewhere = self.ranks.all_reduce_max(self.signals[0] if self.signals else 0, due)
        if signal or due_somewhere:
            require_finite_weights(training)
            if checkpoint is not None and self.ranks.is_rank_zero:
                checkpoint.save(*pack(self.finished, training))
        if signal:
            where = f" after step {training.step} of {training.steps} of {training.name}; its state is saved"
            raise Interrupted(Signals(int(signal)), where)
