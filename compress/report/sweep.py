"""Compares many runs: a point and a row for each, the Pareto fronts, and the settings in which they differ."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from compress.report.html import render
from compress.report.markdown import bullets, escape, table
from compress.report.run_files import RunRecord, failure, is_run, load_run, stage_folders
from compress.report.settings import flat
from compress.report.stage_table import LATENCY_LABEL, TradeOff, accuracy_label, byte_scale, milliseconds, size_label
from compress.report.svg import Point, pareto_front, scatter
from compress.report.verdict import interval, percent, signed, times_smaller, times_text
from compress.utils.errors import UserError
from compress.utils.latency import headline_latency_ms
from compress.utils.metric import TOP1, Metric
from compress.utils.units import count_text, setting_text, size_text, threads_text, three_digits

_BETTER = {"latency": "faster", "size": "smaller"}
_NAMED = 8  # runs of a front that its sentence names at most
_LABELLED = 40  # most points with labels; more labels would cover one another


@dataclass(frozen=True)
class SweepEntry:
    """A run that finished."""

    name: str  # its folder, relative to the sweep's
    href: str  # the address of its own page; empty where there is none
    run: RunRecord
    settings: dict[str, str]

    @property
    def latency_ms(self) -> float:
        return headline_latency_ms(self.run.last.metrics)

    @property
    def size_bytes(self) -> int:
        return self.run.last.metrics["size_bytes"]

    @property
    def percent(self) -> float:
        return self.run.last.percent

    @property
    def loses(self) -> bool:
        """Whether its loss of accuracy against its teacher is significant."""
        return self.run.last.delta_interval[1] < 0


@dataclass(frozen=True)
class Sweep:
    """The runs that the page compares."""

    folder: Path
    entries: list[SweepEntry]
    failed: list[tuple[str, str]]  # (run, reason)

    @property
    def differing(self) -> list[str]:
        """The settings that differ between runs, in the order of the config, without those of early stopping."""
        keys = dict.fromkeys(
            key for entry in self.entries for key in entry.settings if not key.startswith("stop_below.")
        )
        return [key for key in keys if len({entry.settings.get(key) for entry in self.entries}) > 1]


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its text, and the value that sorts it."""

    text: str
    value: str | float
    note: str = ""


@dataclass(frozen=True)
class SweepRow:
    """A row of the table."""

    entry: SweepEntry
    fronts: str
    cells: list[Cell]


def load_sweep(folder: Path, page: str) -> Sweep:
    """Reads all runs below `folder`; a run's own page is the file `page` in its folder. Raises UserError for none."""
    found = sorted((path for path in _folders(folder) if is_run(path)), key=_natural)
    if not found:
        raise UserError(f"{folder} without a run", "a run's folder, or one with runs in it", "name another folder")
    entries, failed = [], []
    for path in found:
        name = path.relative_to(folder).as_posix()
        try:
            run = load_run(path) if stage_folders(path) else None
        except UserError as error:
            failed.append((name, str(error)))
            continue
        if run is None or run.unfinished:
            missing = f" (without {', '.join(run.unfinished)})" if run else " (without a finished stage)"
            failed.append((name, failure(path) + missing))
            continue
        href = f"{quote(name)}/{page}" if (path / page).is_file() else ""
        entries.append(SweepEntry(name, href, run, flat(run.config)))
    return Sweep(folder, entries, failed)


def sweep_page(sweep: Sweep) -> str:
    """Returns report.html of many runs."""
    return render(
        "sweep.html.j2",
        script="sort.js",
        sweep=sweep,
        verdict=sweep_verdict(sweep),
        basis=_basis(sweep),
        cautions=cautions(sweep),
        trade_offs=_trade_offs(sweep) if sweep.entries else [],
        heads=_heads(sweep),
        rows=sweep_rows(sweep),
    )


def sweep_markdown(sweep: Sweep) -> str:
    """Returns report.md of many runs."""
    rows = [(row.entry.name, row.fronts, *(cell.text for cell in row.cells)) for row in sweep_rows(sweep)]
    parts = [f"## {escape(sweep_verdict(sweep))}", escape(_basis(sweep))]
    parts += [f"**{escape(line)}**" for line in cautions(sweep)]
    parts += [table(("run", "front", *_heads(sweep)), rows, 2)] if rows else []
    parts += [bullets([f"{name}: {reason}" for name, reason in sweep.failed], "Runs that did not finish")]
    return "\n\n".join(part for part in parts if part) + "\n"


def sweep_verdict(sweep: Sweep) -> str:
    """Returns a sentence about the best run: the fastest without a significant loss of accuracy."""
    if not sweep.entries:
        return "None of the runs here has finished."
    kept = [entry for entry in sweep.entries if not entry.loses]
    count = f"{len(sweep.entries)} finished run" + ("s" if len(sweep.entries) > 1 else "")
    if not kept:
        best = max(sweep.entries, key=lambda entry: entry.run.last.delta)
        lost = -best.run.last.delta
        return f"Of {count} all lose accuracy; run {best.name} loses least, {lost:.2f} points: {_gains(best)}."
    best = min(kept, key=lambda entry: entry.latency_ms)
    return (
        f"Of {count}, run {best.name} is the fastest in which no loss of accuracy can be told: {_gains(best)}, "
        f"{percent(best.percent)} {best.run.last.metric.label}."
    )


def cautions(sweep: Sweep) -> list[str]:
    """Returns reasons why the runs may not be comparable."""
    found = []
    metrics = [entry.run.last.metrics for entry in sweep.entries]
    machines = {(item["environment"]["cpu"], item["environment"]["threads"]) for item in metrics}
    if len(machines) > 1:
        named = "; ".join(sorted(f"{cpu}, {threads} threads" for cpu, threads in machines))
        found.append(f"The times are not comparable, they were taken on different machines or threads: {named}.")
    busy = [entry.name for entry, item in zip(sweep.entries, metrics, strict=True) if _concurrent_runs(item)]
    if busy:
        found.append(
            f"Up to {max(map(_concurrent_runs, metrics))} other runs went on while these were timed: "
            f"{', '.join(busy)}. "
            "The same command without a launcher and with other measure.repetitions only times them again."
        )
    if len({entry.run.last.record["inputs"]["data_fingerprint"] for entry in sweep.entries}) > 1:
        found.append("The accuracies are not comparable: the runs have read different images.")
    changed = [entry.name for entry in sweep.entries if entry.run.remarks]
    if changed:
        found.append(f"Files are missing or were changed since they were written, in {', '.join(changed)}.")
    return found


def _concurrent_runs(metrics: dict[str, Any]) -> int:
    """Returns how many runs shared the machine with this one while it was measured."""
    return metrics["environment"].get("runs_beside", 0)


def sweep_rows(sweep: Sweep) -> list[SweepRow]:
    """Returns a row for each run, in the order of their names."""
    fast = pareto_front([_point(entry, entry.latency_ms) for entry in sweep.entries])
    small = pareto_front([_point(entry, entry.size_bytes) for entry in sweep.entries])
    rows = []
    for entry in sweep.entries:
        fronts = [
            name for name, front in (("latency", fast), ("size", small)) if entry.name in {p.label for p in front}
        ]
        settings = [_setting(entry.settings.get(key, "–")) for key in sweep.differing]
        rows.append(SweepRow(entry, ", ".join(fronts), [*settings, *_figures(entry)]))
    return rows


def _heads(sweep: Sweep) -> list[str]:
    label = sweep.entries[0].run.last.metric.label if sweep.entries else TOP1.label
    figures = (f"{label}, %", "95 % interval", "points", "ms", "faster", "size", "smaller", "MACs")
    return [*sweep.differing, *figures]


def _figures(entry: SweepEntry) -> list[Cell]:
    metrics = entry.run.last.metrics
    low, high = entry.run.last.percent_interval
    smaller = times_smaller(entry.run, entry.run.last)
    return [
        Cell(f"{entry.percent:.2f}", entry.percent),
        Cell(interval(low, high), low),
        Cell(
            signed(entry.run.last.delta),
            entry.run.last.delta,
            f"95 % interval {interval(*entry.run.last.delta_interval)}",
        ),
        Cell(three_digits(entry.latency_ms), entry.latency_ms),
        Cell(f"{metrics['speedup_vs_teacher']:.2f}×", metrics["speedup_vs_teacher"]),
        Cell(size_text(entry.size_bytes), entry.size_bytes),
        Cell(f"{smaller:.2f}×", smaller),
        Cell(count_text(metrics["macs"]), metrics["macs"]),
    ]


def _setting(text: str) -> Cell:
    """Returns the cell of a setting: four digits, sorted as a number if it is one, with the full value as tooltip."""
    short = setting_text(text)
    value = float(text) if re.fullmatch(r"-?\d+(\.\d*)?(e[-+]?\d+)?", text) else text
    return Cell(short, value, text if short != text else "")


def _trade_offs(sweep: Sweep) -> list[TradeOff]:
    scale, unit = byte_scale(entry.size_bytes for entry in sweep.entries)
    fast = [_point(entry, entry.latency_ms) for entry in sweep.entries]
    small = [_point(entry, entry.size_bytes / scale) for entry in sweep.entries]
    metric = sweep.entries[0].run.last.metric
    return [
        _trade_off("latency", fast, LATENCY_LABEL, metric),
        _trade_off("size", small, size_label(unit), metric),
    ]


def _trade_off(name: str, points: list[Point], x_label: str, metric: Metric) -> TradeOff:
    front = pareto_front(points)
    chosen = {point.label for point in front}
    drawn = [
        Point(p.x, p.y, p.low, p.high, p.label, p.note, "chosen" if p.label in chosen else "plain", p.href)
        for p in points
    ]
    named = ", ".join(point.label for point in front[:_NAMED]) + (", …" if len(front) > _NAMED else "")
    return TradeOff(
        f"Accuracy against {name}",
        f"On the Pareto front, {len(front)} of {len(points)} runs: {named}. No other run is both more accurate and "
        f"{_BETTER[name]} than one of these.",
        scatter(
            drawn, f"chart-{name}",
            f"{metric.name[0].upper()}{metric.name[1:]} of each run's file against its {name}, with 95 % intervals",
            x_label, accuracy_label(metric), front, labelled=len(points) <= _LABELLED,
        ),
    )  # fmt: skip


def _point(entry: SweepEntry, x: float) -> Point:
    low, high = entry.run.last.percent_interval
    note = (
        f"{entry.name}: {percent(entry.percent)} ({interval(low, high)}), {milliseconds(entry.latency_ms)}, "
        f"{size_text(entry.size_bytes)}"
    )
    return Point(x, entry.percent, low, high, entry.name, note, href=entry.href)


def _gains(entry: SweepEntry) -> str:
    smaller = times_text(times_smaller(entry.run, entry.run.last), "smaller", "larger", "as large")
    faster = times_text(entry.run.last.metrics["speedup_vs_teacher"], "faster", "slower", "as fast")
    return f"{faster} and {smaller} than its teacher"


def _basis(sweep: Sweep) -> str:
    if not sweep.entries:
        return ""
    metrics = sweep.entries[0].run.last.metrics
    place = metrics["environment"]
    threads = threads_text(place["threads"])
    return (
        f"Of each run the last stage's model.onnx, in ONNX Runtime {place['versions']['onnxruntime']} on "
        f"{place['cpu']}, {threads}; accuracy on {metrics['images']:,} test images; points, smaller and faster "
        "against the run's own teacher."
    )


def _folders(folder: Path) -> list[Path]:
    """Returns every folder below `folder`, without those inside runs."""
    found = []
    for path, names, _ in os.walk(folder):
        if Path(path) != folder:
            found.append(Path(path))
            if is_run(Path(path)):
                names.clear()
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Returns a sort key that puts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]
