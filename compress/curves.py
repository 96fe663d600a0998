"""TensorBoard: the curves of a stage, the widths that pruning left, and a sweep's table of hparams."""

import shutil
from pathlib import Path
from types import TracebackType

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Curves:
    """Writes one stage's curves to `folder`; what an interrupted run left there is replaced."""

    def __init__(self, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> "Curves":
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

    def widths(self, before: dict[str, list[int]], after: dict[str, list[int]]) -> None:
        """Output channels a layer: a picture of both, and the share that is left as a scalar a layer."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        layers = [name for name in after if len(after[name]) > 1]
        figure, axes = pyplot.subplots(figsize=(max(6.0, 0.22 * len(layers)), 4.5), layout="constrained")
        axes.bar(range(len(layers)), [before[name][0] for name in layers], color="#d5dbe3", label="before")
        axes.bar(range(len(layers)), [after[name][0] for name in layers], color="#2f6fb2", label="after")
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
        axes.set_ylabel("output channels")
        axes.margins(x=0.01)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        self._writer.add_figure("widths", figure)
        for position, name in enumerate(layers):
            self._writer.add_scalar("widths/share_left_by_layer", after[name][0] / before[name][0], position)

    def figure(self, name: str, figure: Figure) -> None:
        """A matplotlib picture, which is closed."""
        self._writer.add_figure(name, figure)

    def table_row(self, settings: dict[str, bool | int | float | str], figures: dict[str, float]) -> None:
        """The stage as a row of TensorBoard's HPARAMS tab.

        Written as this writer's own summaries: `SummaryWriter.add_hparams` would open a second, timestamped run.
        """
        named = {f"figures/{name}": value for name, value in figures.items()}
        for summary in hparams(settings, named):
            self._writer.file_writer.add_summary(summary)
        for name, value in named.items():
            self._writer.add_scalar(name, value)
