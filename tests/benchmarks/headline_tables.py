"""The figures of the README files, made from headlines.json: a block a table, between two comments."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from compress.utils.units import count_text, size_text

FIRST = "mobilenet_int8"  # the README's first command
BLOCKS = {  # file -> the blocks that stand in it
    "README.md": ("first run", "headlines in short"),
    "tests/benchmarks/README.md": ("headlines",),
}
_BLOCK = r"(<!-- {name}: written by tests/benchmarks/headlines.py -->\n).*?(<!-- end of {name} -->)"

Record = dict[str, Any]  # a headline's part of headlines.json


def with_tables(readme: str, figures: dict[str, Record], blocks: Sequence[str]) -> str:
    """A README's text with each of its blocks made anew. Raises ValueError for one whose comments are missing."""
    for name in blocks:
        content = _WRITERS[name](figures)
        pattern = re.compile(_BLOCK.format(name=name), re.DOTALL)
        if not pattern.search(readme):
            raise ValueError(f"received a README without the block '{name}'; expected {pattern.pattern}")
        readme = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", readme)
    return readme


def first_run(figures: dict[str, Record]) -> str:
    """What the first command prints, of seed 0, and how long it took."""
    record = figures[FIRST]
    run = record["seeds"]["0"]
    heads = ("stage", "top-1 %", "95 % range", "lost", "MACs", "size", "ms", "smaller", "faster")
    rows = [heads, *(_cells(stage) for stage in run["stages"])]
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    lines = [
        " " + " ".join(f"{cell:<{width}}" if at == 0 else f"{cell:>{width}}" for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    lines.insert(1, " " + "─" * (len(lines[0]) - 1))
    table = "\n".join(lines)
    beside = "alone" if record["jobs"] == 1 else f"one of {record['jobs']} runs at once"
    return (
        f"```\n{table}\n```\n\n"
        f"That took {run['minutes']:.1f} minutes as `{record['command']} seed=0`, {beside}, "
        f"on {record['cores']} cores of {record['cpu']}, at commit {record['commit']} ({record['date']}); another CPU "
        "gives other digits."
    )


def table(figures: dict[str, Record]) -> str:
    """A row a headline, with the command that makes it below; accuracies and losses are means over the seeds."""
    lines = [
        "| run | test images | teacher % | int8 % | each seed | points lost | MACs | size | latency | minutes |",
        "|---|---:|---:|---:|---|---:|---|---|---|---:|",
    ]
    for record in figures.values():
        runs = list(record["seeds"].values())
        last = [run["stages"][-1] for run in runs]
        short = _figures(record)
        cells = [
            short["run"],
            f"{runs[0]['images']:,}",
            short["teacher"],
            short["int8"],
            ", ".join(f"{stage['deployed_top1_percent']:.2f} ({_interval(stage)})" for stage in last),
            *(short[name] for name in ("points lost", "MACs", "size", "latency")),
            f"{statistics.median(run['minutes'] for run in runs):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    commands = [
        f"{record['command']} seed=SEED   # {', '.join(record['seeds'])}; {record['date']}, commit {record['commit']}, "
        f"{record['cores']} cores of {record['cpu']}"
        for record in figures.values()
    ]
    return "\n".join([*lines, "", "```bash", *commands, "```"])


def short_table(figures: dict[str, Record]) -> str:
    """A row a headline: what a user gains and loses, as `table` has it."""
    lines = [
        "| run | teacher % | int8 % | points lost | MACs | size | latency |",
        "|---|---:|---:|---:|---|---|---|",
        *(f"| {' | '.join(_figures(record).values())} |" for record in figures.values()),
    ]
    return "\n".join(lines)


def _figures(record: Record) -> dict[str, str]:
    """Of a headline: accuracies and points lost as means over its seeds, ratios as medians."""
    runs = list(record["seeds"].values())
    first, last = ([run["stages"][at] for run in runs] for at in (0, -1))
    mean = lambda rows, name: statistics.fmean(row[name] for row in rows)
    median = lambda name: statistics.median(row[name] for row in last)
    return {
        "run": record["title"],
        "teacher": f"{mean(first, 'deployed_top1_percent'):.2f}",
        "int8": f"{mean(last, 'deployed_top1_percent'):.2f}",
        "points lost": f"{mean(last, 'points_lost'):.2f}",
        "MACs": f"{median('times_fewer_macs'):.2f}x fewer",
        "size": f"{median('times_smaller'):.2f}x smaller",
        "latency": f"{median('times_faster'):.2f}x faster",
    }


def _cells(stage: dict[str, Any]) -> tuple[str, ...]:
    return (
        stage["stage"],
        f"{stage['deployed_top1_percent']:.2f}",
        _interval(stage),
        f"{stage['points_lost']:.2f}",
        count_text(stage["macs"]),
        size_text(stage["size_bytes"]),
        f"{stage['latency_ms_p50']:.2f}",
        f"{stage['times_smaller']:.2f}x",
        f"{stage['times_faster']:.2f}x",
    )


def _interval(stage: dict[str, Any]) -> str:
    low, high = stage["deployed_top1_ci95_percent"]
    return f"{low:.2f}-{high:.2f}"


_WRITERS = {"first run": first_run, "headlines in short": short_table, "headlines": table}
