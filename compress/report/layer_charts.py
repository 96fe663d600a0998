"""Charts with a row for each layer: the filters that remain, the time that each takes, and what int8 costs."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open

from compress.report.run_files import RunRecord, StageRecord
from compress.utils.files import MODEL
from compress.utils.metric import MAP50
from compress.utils.units import threads_text, three_digits

_SHOWN_NODES = 20  # the slowest nodes of a profile; the others are summed
_DIVERGENCE = "divergence from the float network"
_LEAST_SHARE = 0.01  # of a file's time; operators with less in both files are summed


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart; lengths are percents of the row's width."""

    name: str
    value: str
    length: float
    behind: float = 0.0  # the length of a grey bar that is drawn behind it
    strong: bool = False
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A bar chart with a sentence that sums it up."""

    takeaway: str
    bars: list[Bar]
    detail: Any = None
    scale: str = ""  # what the bars measure


@dataclass(frozen=True)
class Operator:
    """All nodes of one operator: their number and milliseconds in the teacher's file and in the deployed file."""

    name: str
    teacher_count: int
    teacher_ms: float
    count: int
    ms: float
    share_percent: float


def width_chart(run: RunRecord) -> Chart | None:
    """Charts output channels before and after pruning; None where no layer was pruned."""
    after = {name: width[0] for name, width in run.last.spec["widths"].items() if len(width) > 1}
    before = _output_channels(run.teacher, after)
    before = {name: width for name, width in before.items() if width != after[name]}  # the others only lost inputs
    if not before:
        return None
    widest = max(before.values())
    bars = [
        Bar(name, f"{before[name]:,} → {after[name]:,}", 100 * after[name] / widest, behind=100 * before[name] / widest)
        for name in before
    ]
    old, new = sum(before.values()), sum(after[name] for name in before)
    narrowest = min(before, key=lambda name: after[name] / before[name])
    return Chart(
        f"{new:,} of {old:,} output channels are left in the {len(before)} layers that pruning made narrower, "
        f"{100 * new / old:.0f} %; {narrowest} kept the smallest share, {after[narrowest]:,} of {before[narrowest]:,}.",
        bars,
    )


def _output_channels(stage: StageRecord, layers: dict[str, int]) -> dict[str, int]:
    """Returns the output channels of the `layers` whose weights the stage's file has; empty where the file is gone."""
    path = stage.folder / MODEL
    if not path.is_file():
        return {}
    with safe_open(path, framework="numpy") as file:
        there = set(file.keys())
        return {name: file.get_slice(f"{name}.weight").get_shape()[0] for name in layers if f"{name}.weight" in there}


def profile_chart(run: RunRecord) -> Chart | None:
    """Charts the milliseconds of each node of the last stage's file, the slowest first; `detail` has operators."""
    profile = run.last.profile
    if not profile or not profile["nodes"]:
        return None
    nodes = sorted(profile["nodes"], key=lambda node: -node["ms"])
    total, longest = sum(node["ms"] for node in nodes), nodes[0]["ms"] or 1.0
    bars = [
        Bar(node["name"], _time_text(node["ms"], total), 100 * node["ms"] / longest, note=node["operator"], strong=True)
        for node in nodes[:_SHOWN_NODES]
    ]
    if rest := nodes[_SHOWN_NODES:]:
        ms = sum(node["ms"] for node in rest)
        bars.append(Bar(f"the other {len(rest)} nodes", _time_text(ms, total), 0.0, note="summed, no bar"))
    operators = _operators(profile, run.teacher.profile if len(run.stages) > 1 else None)
    threads = threads_text(profile["threads"])
    return Chart(
        f"{operators[0].name} takes {operators[0].share_percent:.0f} % of the {three_digits(total)} ms of one image; "
        f"the slowest node, {nodes[0]['name']}, takes {100 * nodes[0]['ms'] / total:.0f} %. "
        f"Mean of {profile['runs']:,} runs with the profiler on, {threads}.",
        bars,
        operators,
    )


def _time_text(value: float, total: float) -> str:
    return f"{three_digits(value)} ms · {100 * value / total:.1f} %"


def _operators(profile: dict[str, Any], teacher: dict[str, Any] | None) -> list[Operator]:
    """Returns the operators of both files, the slowest in the deployed file first; small ones are summed."""
    own, theirs = _by_operator(profile), _by_operator(teacher) if teacher else {}
    total, their_total = (sum(ms for _, ms in times.values()) or 1.0 for times in (own, theirs))
    names = sorted(own | theirs, key=lambda name: (-own.get(name, (0, 0.0))[1], -theirs.get(name, (0, 0.0))[1]))
    small = [
        name
        for name in names
        if own.get(name, (0, 0.0))[1] < _LEAST_SHARE * total
        and theirs.get(name, (0, 0.0))[1] < _LEAST_SHARE * their_total
    ]
    if len(small) < 2:
        small = []
    groups = [(name, [name]) for name in names if name not in small]
    if small:
        groups.append((f"{len(small)} others", small))
    rows = []
    for label, members in groups:
        (count, ms), (teacher_count, teacher_ms) = (_summed(times, members) for times in (own, theirs))
        rows.append(Operator(label, teacher_count, teacher_ms, count, ms, 100 * ms / total))
    return rows


def _summed(times: dict[str, tuple[int, float]], names: list[str]) -> tuple[int, float]:
    found = [times[name] for name in names if name in times]
    return sum(count for count, _ in found), sum(ms for _, ms in found)


def _by_operator(profile: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Returns count and milliseconds of the nodes of each operator."""
    times = defaultdict(list)
    for node in profile["nodes"]:
        times[node["operator"]].append(node["ms"])
    return {operator: (len(values), sum(values)) for operator, values in times.items()}


def sensitivity_chart(table: dict[str, Any] | None) -> Chart | None:
    """Charts sensitivity.json: what each layer costs as int8, in the network's order; None where not measured."""
    if not table or not table["layers"]:
        return None
    rows = table["layers"]
    most = max(row["kl_nats"] for row in rows) or 1.0
    digits = max(0, 1 - math.floor(math.log10(most)))  # two significant digits of the largest
    bars = [
        Bar(
            row["layer"],
            f"{row['kl_nats']:.{digits}f}",
            100 * row["kl_nats"] / most,
            strong=row["kept_float"],
            note="float" if row["kept_float"] else "",
        )
        for row in rows
    ]
    kept = sum(row["kept_float"] for row in rows)
    figure = next(name.removeprefix("float") for name in table if name.startswith("float_"))  # "_top1_percent" for one
    boxes = figure == f"_{MAP50.key}_percent"  # the divergence then has a part in pixels
    unit, scale = ("", f"{_DIVERGENCE}, in classes and boxes") if boxes else (" nats", f"{_DIVERGENCE}, in nats")
    whole, int8, chosen = (f"{table[name + figure]:.2f} %" for name in ("float", "int8", "chosen"))
    return Chart(
        f"{kept} of {len(rows)} layers stay float, to lose at most {table['max_drop_points']:g} points. On "
        f"{table['images']:,} validation images the float network has {whole}, all of it as int8 {int8} "
        f"({table['int8_kl_nats']:.3g}{unit} away), the chosen mix {chosen}.",
        bars,
        scale=scale,
    )
