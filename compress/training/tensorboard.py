"""Writes TensorBoard files: the curves of a stage, the figures of a run, and its row in the HPARAMS table.

TensorBoard orders its cards by tag: `epoch/` and `step/` come first, and figures that are written once come after them.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes a second, which a run without a new stage does without
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardWriter:
    """Writes curves to `folder`, whose content is replaced, or nowhere where it is None."""

    def __init__(self, folder: Path | None):
        self._writer: SummaryWriter | None = None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            from torch.utils import tensorboard

            self._writer = tensorboard.SummaryWriter(str(folder))

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, step: int, **values: float) -> None:
        """Writes scalars of one optimizer step."""
        for name, value in values.items():
            self._scalar(f"step/{name}", value, step)

    def epoch(self, epoch: int, **values: float) -> None:
        """Writes scalars of one epoch."""
        for name, value in values.items():
            self._scalar(f"epoch/{name}", value, epoch)

    def by_layer(self, name: str, values: Iterable[float]) -> None:
        """Writes a figure of each layer, as a line over their positions in the network."""
        for position, value in enumerate(values):
            self._scalar(f"summary_by_layer/{name}", value, position)

    def by_stage(self, number: int, figures: dict[str, float]) -> None:
        """Writes the figures of stage `number`, by tag: each is a point of its line over the stages."""
        for tag, value in figures.items():
            self._scalar(tag, value, number)

    def log_hparams(self, settings: dict[str, bool | int | float | str]) -> None:
        """Writes this run's row in the HPARAMS tab, whose figures are the last point of each line.

        The row is written as summaries of this writer: `SummaryWriter.add_hparams` would open a second, timestamped
        run. The summary of a whole experiment is omitted: TensorBoard then reads all runs and puts differences first.
        """
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        _, start, end = hparams(settings, {})
        for summary in (start, end):
            self._writer.file_writer.add_summary(summary)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)
