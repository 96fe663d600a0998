"""The tables of the pruning benchmark, as Markdown: a row for each way and share, over all seeds."""

import statistics
from collections.abc import Iterable

import numpy as np

from compress.utils.statistics import paired_difference
from tests.benchmarks.headlines import bits
from tests.benchmarks.rows import Row, by_series, machine_text

BASELINE = "l1:local"  # that ways are compared with after the refit
# Rows that differ in them are in tables of their own.
_SERIES = ("part", "epochs", "lr", "batch_size", "train_images", "commit")
_TITLES = {
    "refit": "Right after the cut, without training: top-1 of the float network, against l1:local at the same share",
    "train": "After {epochs} epochs of distillation with {lr}: top-1 of the int8 file, against the teacher",
}


def tables(rows: list[Row]) -> str:
    """Returns a table for each part, and for each commit and number of images that rows were made with."""
    return "\n\n".join(map(_table, by_series(rows, _SERIES)))


def _table(rows: list[Row]) -> str:
    first, last = rows[0], rows[-1]
    teachers = {row["seed"]: 100 * float(teacher_bits(row).mean()) for row in rows if "error" not in row}
    lr = f"a learning rate of {first['lr']:g}" if first["lr"] else "the recipe's learning rate"
    lr += f" and batches of {first['batch_size']}" if first["batch_size"] else ""
    lines = [_TITLES[first["part"]].format(epochs=first["epochs"], lr=lr)]
    if teachers:
        lines[0] += f"; the teacher has {mean_and_each(teachers.values())} %"
    seconds = first["part"] == "refit"
    lines += ["", "| MACs asked | way | top-1 %: mean (each seed) | difference, 95 % range | MACs left % |"]
    lines += ["|---|---|---|---|---:|"]
    if seconds:
        lines[-2:] = [lines[-2] + " s |", lines[-1] + "---:|"]
    lines += [line for share in sorted({row["share"] for row in rows}, reverse=True) for line in _lines(rows, share)]
    images = f", {first['train_images']} train images" if first["train_images"] else ""
    return "\n".join([*lines, "", f"{machine_text(last)}{images}."])


def _lines(rows: list[Row], share: float) -> list[str]:
    """Returns the table's lines of one share, the most accurate way first and failures last."""
    ways: dict[str, list[Row]] = {}
    for row in rows:
        if row["share"] == share:
            ways.setdefault(row["way"], []).append(row)
    baseline = {row["seed"]: row for row in ways.get(BASELINE, []) if "error" not in row}
    scored, failed = [], []
    for way, of_way in ways.items():
        name = f"| {1 / share:.2f}x fewer | {way} |"
        good = [row for row in of_way if "error" not in row]
        if good:
            scored.append((-statistics.mean(row["top1_percent"] for row in good), f"{name} {_cells(good, baseline)} |"))
        if bad := next((row for row in of_way if "error" in row), None):
            seeds = ", ".join(str(row["seed"]) for row in of_way if "error" in row)
            text = " ".join(bad["error"].split()).replace("|", "/")
            failed.append(f"{name} failed on seeds {seeds}: {text} |" + " |" * (_columns(bad) - 3))
    return [line for _, line in sorted(scored)] + failed


def _columns(row: Row) -> int:
    return 6 if row["part"] == "refit" else 5


def _cells(rows: list[Row], baseline: dict[int, Row]) -> str:
    """Returns the figures of one way and share, over its seeds."""
    is_refit = rows[0]["part"] == "refit"
    if is_refit:
        pairs = [(bits(row), bits(baseline[row["seed"]])) for row in rows if row["seed"] in baseline]
    else:
        pairs = [(bits(row), teacher_bits(row)) for row in rows]
    cells = [
        mean_and_each(row["top1_percent"] for row in rows),
        "" if is_refit and rows[0]["way"] == BASELINE else difference(pairs),
        f"{100 * statistics.mean(row['macs_share'] for row in rows):.1f}",
    ]
    return " | ".join([*cells, *([f"{statistics.mean(row['seconds'] for row in rows):.0f}"] if is_refit else [])])


def difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Formats the difference in accuracy over all pairs of bool (N,), in points, with its paired 95 % interval.

    Seeds are counted together, as though their images were different ones.
    """
    if not pairs:
        return "not known"
    gained = sum(int((right & ~other).sum()) for right, other in pairs)
    lost = sum(int((other & ~right).sum()) for right, other in pairs)
    delta, (low, high) = paired_difference(gained, lost, sum(len(right) for right, _ in pairs))
    return f"{delta:+.2f} ({low:+.2f} to {high:+.2f})"


def teacher_bits(row: Row) -> np.ndarray:
    """Returns which test images the teacher has right, bool (N,)."""
    return bits({"right": row["teacher_right"], "images": row["images"]})


def mean_and_each(percents: Iterable[float]) -> str:
    """Formats a mean, and the figures that it is of."""
    values = list(percents)
    return f"{statistics.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"
