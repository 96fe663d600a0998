"""Shows progress bars during a run, and the table of stages at its end."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from compress.utils.latency import headline_latency_ms
from compress.utils.metric import metric_of
from compress.utils.units import count_text, size_text


def silence() -> None:
    """Makes this process show no bar and no table, because another process of its run does."""
    get_console().quiet = True


class Bar:
    """A progress bar with a remark after it."""

    def __init__(self, bars: Progress, task: TaskID):
        self._bars, self._task = bars, task

    def advance(self, steps: int = 1) -> None:
        self._bars.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=text)


@contextmanager
def progress(name: str, steps: int, done: int = 0) -> Iterator[Bar]:
    """Shows a bar of `steps` on the terminal, `done` of them finished; it disappears at the end of the context."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=get_console(), transient=True, disable=get_console().quiet or not get_console().is_terminal
    ) as bars:
        yield Bar(bars, bars.add_task(name, total=steps, completed=done, note=""))


def print_summary(rows: list[dict]) -> None:
    """Prints the table of stages from summary.json's rows, 80 columns wide."""
    table = Table(box=SIMPLE_HEAD, padding=0)
    metric = metric_of(rows[-1]["metrics"])
    for heading in ("stage", f"{metric.label} %", "95 % range", "lost", "MACs", "size", "ms", "smaller", "faster"):
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for row in rows:
        metrics = row["metrics"]
        low, high = metric.interval(metrics)
        table.add_row(
            row["stage"],
            f"{metric.percent(metrics):.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['points_lost']:.2f}",
            count_text(metrics["macs"]),
            size_text(metrics["size_bytes"]),
            f"{headline_latency_ms(metrics):.2f}",
            f"{row['times_smaller']:.2f}x",
            f"{row['times_faster']:.2f}x",
        )
    get_console().print(table)
    get_console().print(
        f"{metric.label}, size and ms (one image, median) are those of each stage's model.onnx in\n"
        "ONNX Runtime; lost: points, smaller, faster: times, against the teacher's file\n"
    )
    if exits := [row["stage"] for row in rows if "exits" in row["metrics"]]:
        get_console().print(
            f"{' and '.join(exits)}: ms and faster are means over test images,\nsome of which leave early; MACs are "
            "those of one that goes to the end\n"
        )
    for name, target in rows[-1]["metrics"]["targets"].items():
        size = size_text(target["size_bytes"])
        percent, latency_ms = target[f"{metric.key}_percent"], target["latency_ms_p50"]
        get_console().print(f"{rows[-1]['stage']} in {name}: {percent:.2f} %, {size}, {latency_ms:.2f} ms")
