"""The tables of the distillation benchmark, as Markdown: a row for each pair and loss, over all seeds."""

import statistics

from tests.benchmarks.headlines import bits
from tests.benchmarks.pruning_tables import difference, mean_and_each, teacher_bits
from tests.benchmarks.rows import Row, by_series, machine_text

BASELINES = ("labels", "kd")  # that each way is compared with, on the same seeds
_SERIES = ("pair", "epochs", "lr", "commit")  # rows that differ in them are in tables of their own


def tables(rows: list[Row]) -> str:
    """Returns a table for each pair, and for each commit and length of training that rows were made with."""
    return "\n\n".join(map(_table, by_series(rows, _SERIES)))


def _table(rows: list[Row]) -> str:
    first = rows[0]
    ways: dict[str, list[Row]] = {}
    for row in rows:
        ways.setdefault(row["way"], []).append(row)
    teachers = {row["seed"]: 100 * float(teacher_bits(row).mean()) for row in rows if "error" not in row}
    title = f"{first['pair']}, {first['epochs']} epochs, learning rate {first['lr']:g}"
    title += f"; the teacher has {mean_and_each(teachers.values())} %" if teachers else ""
    heads = ["loss", "top-1 %: mean (each seed)", *(f"against {name}, 95 % range" for name in BASELINES)]
    lines = [title, "", f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    scored = {way: [row for row in found if "error" not in row] for way, found in ways.items()}
    order = sorted(
        (way for way in scored if scored[way]),
        key=lambda way: -statistics.mean(row["top1_percent"] for row in scored[way]),
    )
    lines += [_line(way, scored) for way in order]
    for way, found in ways.items():
        failed = [row for row in found if "error" in row]
        lines += [f"| {way} | failed: {' '.join(failed[0]['error'].split())} | | |"] if failed else []
    return "\n".join([*lines, "", f"{machine_text(rows[-1])}."])


def _line(way: str, scored: dict[str, list[Row]]) -> str:
    rows = scored[way]
    cells = [way, mean_and_each(row["top1_percent"] for row in rows)]
    for name in BASELINES:
        baseline = {row["seed"]: row for row in scored.get(name, [])}
        pairs = [(bits(row), bits(baseline[row["seed"]])) for row in rows if row["seed"] in baseline]
        cells.append("" if name == way else difference(pairs))
    return f"| {' | '.join(cells)} |"
