"""TensorBoard: the curves and pictures of a stage, and its row in the table of hparams."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoardWriter:
    """Writes one stage's curves to `folder`, or nowhere; what an interrupted run left there is replaced."""

    def __init__(self, folder: Path | None):
        if folder is None:
            self._writer = _Nowhere()
        else:
            shutil.rmtree(folder, ignore_errors=True)
            from torch.utils.tensorboard import SummaryWriter  # a second, which a run without a new stage does without

            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def step(self, step: int, **values: float) -> None:
        """Scalars of one optimizer step."""
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, epoch: int, **values: float) -> None:
        """Scalars of one epoch."""
        for name, value in values.items():
            self._writer.add_scalar(f"epoch/{name}", value, epoch)

    def filters_left(self, layers: dict[str, tuple[int, int]]) -> None:
        """The share of its filters that each layer keeps, a scalar a layer, from their numbers before and after."""
        for position, (before, after) in enumerate(layers.values()):
            self._writer.add_scalar("widths/share_left_by_layer", after / before, position)

    def figure(self, name: str, figure: "Figure") -> None:
        """A matplotlib picture."""
        self._writer.add_figure(name, figure)

    def table_row(self, settings: dict[str, bool | int | float | str], figures: dict[str, float]) -> None:
        """The stage as a row of TensorBoard's HPARAMS tab: its settings, and `figures` by the tags of their scalars.

        Written as this writer's own summaries: `SummaryWriter.add_hparams` would open a second, timestamped run. The
        summary of a whole experiment is left out: TensorBoard then reads all runs and shows first what differs.
        """
        from torch.utils.tensorboard.summary import hparams

        _, start, end = hparams(settings, {})
        for summary in (start, end):
            self._writer.file_writer.add_summary(summary)
        for name, value in figures.items():
            self._writer.add_scalar(name, value)


class _Nowhere:
    """What a stage asks of a SummaryWriter, in a process that only helps to train."""

    def add_scalar(self, *_: object) -> None: ...

    def add_figure(self, *_: object) -> None: ...

    def close(self) -> None: ...
