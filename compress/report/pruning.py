"""Puts what pruning or factorization was asked for and what it reached into sentences and tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.report.architecture_front import Front, architecture_front
from compress.report.pruning_curves import Curves, Steps, group_curves, step_curve
from compress.report.rank_table import Ranks, rank_table
from compress.report.run_files import RunRecord, StageRecord
from compress.report.verdict import signed
from compress.utils.latency import headline_latency_ms
from compress.utils.units import count_text, size_text, three_digits

_LEAST_PERCENT = 0.05  # a smaller difference would be written as 0.0 %
_FEW_TRIES = 12  # the table of which is open
_PRUNING, _FACTORIZATION, _SEARCH = "Pruning", "Factorization", "Architecture search"


@dataclass(frozen=True)
class TargetRow:
    """What was asked for, and what was reached, of one figure; a dash stands for what was not set or taken."""

    name: str
    asked: str
    reached: str
    predicted: str
    difference: str  # of the predicted from the measured figure
    deployed: str  # of the file that ships


@dataclass(frozen=True)
class Search:
    """The networks that the bisection tried, in order, and last the one taken; cells of a row stand under `heads`."""

    takeaway: str
    heads: list[str]
    rows: list[list[str]]
    has_checks: bool  # whether networks that were found were then measured or validated
    is_open: bool


@dataclass(frozen=True)
class Target:
    """What was asked for, what was reached, and how it was found."""

    sentences: list[str]
    rows: list[TargetRow]
    has_predicted: bool
    deployed: str  # the file that ships; empty where a stage is still to come
    search: Search | None


@dataclass(frozen=True)
class Pruning:
    """The parts of a stage's section; None stands for one that the stage did not note."""

    title: str  # "Pruning", "Factorization" or "Architecture search"
    target: Target | None
    curves: Curves | None
    steps: Steps | None
    ranks: Ranks | None
    front: Front | None

    @property
    def anchor(self) -> str:
        """The name by which links of the page find the section."""
        return self.title.lower().replace(" ", "-")

    @property
    def is_factorization(self) -> bool:
        """Whether layers were factorized, in place of filters that were removed."""
        return self.title == _FACTORIZATION


@dataclass(frozen=True)
class _Figure:
    """A figure that can be a target, and how it is written."""

    name: str
    of: str  # what follows the figure in a sentence
    text: Callable[[float], str]
    at_least: bool = False
    asked: str = ""  # its key in prune.target, where it is another
    count: str = ""  # the key of the count that it is a share of
    points: float = 0.0  # points in a difference of 1; 0: differences are in percent
    measured: str = ""  # the key of what was measured of the file; empty: it is counted, or taken on images


def _share_text(value: float) -> str:
    return f"{100 * value:.1f} %"


_FIGURES = {
    "macs_share": _Figure("MACs, one image", "of the MACs", _share_text, count="macs", points=100),
    "params_share": _Figure("parameters", "of the parameters", _share_text, count="params", points=100),
    "estimated_energy_share": _Figure(
        "estimated energy, one image", "of the estimated energy", _share_text, points=100
    ),
    "size_bytes": _Figure("file size", "for the file", size_text, measured="size_bytes"),
    "latency_ms": _Figure(
        "latency, one image", "an image", lambda value: f"{three_digits(value)} ms", measured="latency_ms"
    ),
    "speedup": _Figure(
        "speed, against the teacher",
        "the teacher's speed",
        lambda value: f"{value:.2f} times",
        at_least=True,
        measured="latency_ms",
    ),
    "drop_points": _Figure(
        "lost on validation",
        "lost on validation before fine-tuning",
        lambda value: f"{signed(value)} points",
        asked="max_drop_points",
        points=1,
    ),
}


def prunings(run: RunRecord) -> list[Pruning]:
    """Returns the parts of a section for each stage that noted a target, steps, curves or ranks, in their order."""
    return [_pruning(run, stage) for stage in _smaller_stages(run)]


def _pruning(run: RunRecord, stage: StageRecord) -> Pruning:
    notes = stage.record["notes"]
    return Pruning(
        _title(stage),
        _target(run, stage) if notes.get("target") else None,
        group_curves(notes["sensitivity"], stage.metric) if notes.get("sensitivity") else None,
        step_curve(notes["steps"], stage.metric) if notes.get("steps") else None,
        rank_table(notes.get("ranks", [])),
        architecture_front(notes.get("architectures"), stage.metric),
    )


def target_sentences(run: RunRecord) -> list[str]:
    """Returns for each target that was set what was asked for, reached and predicted; empty without a target."""
    stages = [stage for stage in _smaller_stages(run) if stage.record["notes"].get("target")]
    several = len(stages) > 1
    return [
        text
        for stage in stages
        for text in _sentences(run, stage, f"{_title(stage)} was asked" if several else "Asked")
    ]


def _sentences(run: RunRecord, stage: StageRecord, asked_whom: str) -> list[str]:
    """Returns the sentences on the targets of one stage, which begin with `asked_whom`."""
    note, sentences = stage.record["notes"]["target"], []
    deployed = _deployed(run, stage)
    for key, asked in _asked(note).items():
        figure = _FIGURES[key]
        bound = f"{'at least' if figure.at_least else 'at most'} {figure.text(asked)} {figure.of}"
        text = f"{asked_whom} for {bound}; {_reached_text(key, asked, note)}."
        if key in deployed and (miss := _miss(key, asked, deployed[key])):
            text += f" The file that ships, {run.last.name}/model.onnx, is at {figure.text(deployed[key])}, {miss}."
        sentences.append(text)
    return sentences


def _smaller_stages(run: RunRecord) -> list[StageRecord]:
    """Returns the stages that noted something that a section shows; "target" may be a remark on the CPU."""
    keys = ("target", "steps", "sensitivity", "ranks")
    found = {stage.name: [stage.record["notes"].get(key) for key in keys] for stage in run.stages}
    return [stage for stage in run.stages if any(value and not isinstance(value, str) for value in found[stage.name])]


def _title(stage: StageRecord) -> str:
    notes = stage.record["notes"]
    return _SEARCH if "architectures" in notes else _FACTORIZATION if "ranks" in notes else _PRUNING


def _asked(note: dict[str, Any]) -> dict[str, float]:
    """Returns the targets that were set, by the keys of what was reached."""
    asked = {key: note["asked"].get(figure.asked or key) for key, figure in _FIGURES.items()}
    return {key: value for key, value in asked.items() if value is not None}


def _reached(note: dict[str, Any]) -> dict[str, float]:
    """Returns what was measured, or else counted or predicted, without what was not taken."""
    found = note["reached"] | {key: value for key, value in note.get("measured", {}).items() if value is not None}
    return {key: value for key, value in found.items() if value is not None}


def _predicted(note: dict[str, Any]) -> dict[str, float]:
    """Returns what the table of layers predicted."""
    return {key: value for key, value in note.get("predicted", {}).items() if value is not None}


def _deployed(run: RunRecord, stage: StageRecord) -> dict[str, float]:
    """Returns the figures of the file that ships, with shares of what the network had before `stage`.

    There are none where a stage is still to come.
    """
    if run.unfinished:
        return {}
    own, before = run.last.metrics, run.stages[run.stages.index(stage) - 1].metrics
    return {
        "macs_share": own["macs"] / before["macs"],
        "params_share": own["params"] / before["params"],
        "size_bytes": own["size_bytes"],
        "latency_ms": headline_latency_ms(own),
        "speedup": own["speedup_vs_teacher"],
    }


def _reached_text(key: str, asked: float, note: dict[str, Any]) -> str:
    figure, reached, predicted = _FIGURES[key], _reached(note), _predicted(note).get(key)
    value = reached.get(key, predicted)
    if value is None:
        return "it was not measured"
    miss = _miss(key, asked, value)
    missed = f", {miss}" if miss else ""
    if figure.measured and note.get("measured", {}).get(figure.measured) is None:
        return f"predicted {figure.text(value)}{missed}, and not measured"
    text = f"reached {_with_count(key, reached)}{missed}"
    difference = _difference(key, note)
    if predicted is None or difference is None:
        return text
    word = f"{abs(difference):.1f} % {'less' if difference < 0 else 'more'}"
    return f"{text}, predicted {figure.text(predicted)} ({'the same' if abs(difference) < _LEAST_PERCENT else word})"


def _with_count(key: str, reached: dict[str, float]) -> str:
    figure = _FIGURES[key]
    count = f" ({count_text(reached[figure.count])})" if figure.count in reached else ""
    return f"{figure.text(reached[key])}{count}"


def _difference(key: str, note: dict[str, Any]) -> float | None:
    """Returns by how many percent the predicted figure differs from the measured one; None without either."""
    predicted, measured = _predicted(note).get(key), note.get("measured", {}).get(key)
    return 100 * (predicted / measured - 1) if predicted is not None and measured else None


def _miss(key: str, asked: float, value: float) -> str:
    """Returns by how much a figure misses its target; empty where it meets it."""
    figure = _FIGURES[key]
    if value >= asked if figure.at_least else value <= asked:
        return ""
    by = (
        f"{figure.points * abs(value - asked):.2f} points" if figure.points else f"{100 * abs(value / asked - 1):.1f} %"
    )
    return f"{by} {'under' if figure.at_least else 'over'} the target"


def _target(run: RunRecord, stage: StageRecord) -> Target:
    note, deployed = stage.record["notes"]["target"], _deployed(run, stage)
    asked, reached = _asked(note), _reached(note)
    predicted, rows = _predicted(note), []
    for key, figure in _FIGURES.items():
        if key not in asked | reached | predicted:
            continue
        difference = _difference(key, note)
        bound = "at least" if figure.at_least else "at most"
        rows.append(
            TargetRow(
                figure.name,
                f"{bound} {figure.text(asked[key])}" if key in asked else "–",
                _with_count(key, reached) if key in reached else "–",
                _cell(key, predicted),
                "–" if difference is None else _signed_percent(difference),
                _cell(key, deployed),
            )
        )
    file = "" if run.unfinished else f"{run.last.name}/model.onnx"
    return Target(_sentences(run, stage, "Asked"), rows, bool(predicted), file, _search(note))


def _cell(key: str, figures: dict[str, Any]) -> str:
    return "–" if figures.get(key) is None else _FIGURES[key].text(figures[key])


def _signed_percent(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f} %".replace("-", "−")


def _search(note: dict[str, Any]) -> Search | None:
    """Returns the tries with the figures that were taken of any; None without a try."""
    tries = note.get("search") or []
    if not tries:
        return None
    keys = [key for key in _FIGURES if any(row.get(key) is not None for row in tries)]
    rows = [
        [str(number), _position(row), *(_cell(key, row) for key in keys), "yes" if row["met"] else "no"]
        for number, row in enumerate(tries, 1)
    ]
    reached = _reached(note)
    missed = any(_miss(key, asked, reached[key]) for key, asked in _asked(note).items() if key in reached)
    rows.append(["taken", "–", *(_cell(key, reached) for key in keys), "no" if missed else "yes"])
    met = sum(row["met"] for row in tries)
    count = "1 try" if len(tries) == 1 else f"{len(tries)} tries"
    seconds = f" in {note['seconds']:,.0f} s" if note.get("seconds") is not None else ""
    return Search(
        f"The search made {count}{seconds}; {met or 'none'} met the target.",
        ["try", "position", *(_FIGURES[key].name for key in keys), "meets the target"],
        rows,
        has_checks=any(row["position"] is None for row in tries),
        is_open=len(tries) <= _FEW_TRIES,
    )


def _position(row: dict[str, Any]) -> str:
    return "–" if row["position"] is None else f"{row['position']:.4g}"
