"""How well the deployable file finds the objects of each class, for the page of a run with boxes."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from compress.report.run_files import RunRecord, StageRecord
from compress.report.svg import Line, curves
from compress.report.verdict import interval
from compress.utils.average_precision import Matches, found_objects, lost_objects, match, precision_recall
from compress.utils.units import size_text, three_digits

_MOST_CURVES = 12  # with more classes, those with most objects have a chart


@dataclass(frozen=True)
class ClassRow:
    """A class with the average precision of the last stage's file and of the teacher's."""

    name: str
    objects: int  # in the test images; difficult objects and crowds do not count
    teacher_ap50: str
    ap50: str
    ap50_interval: str
    teacher_ap: str  # at IoUs of 0.5 to 0.95
    ap: str


@dataclass(frozen=True)
class SizeRow:
    """The objects of one class and size, and how many of them each file finds."""

    name: str
    size: str
    objects: int
    teacher_found: int
    found: int
    lost: int  # the teacher's file alone finds them
    gained: int  # the last stage's file alone finds them


@dataclass(frozen=True)
class NmsRow:
    """The figures of a stage's file that selects the boxes itself."""

    stage: str
    file: str
    percent: str
    size: str
    latency: str
    latency_p95: str
    latency_without: str  # of model.onnx, in turns with it


@dataclass(frozen=True)
class Curve:
    """The chart of one class: the precision of both files at each recall."""

    name: str
    drawing: Markup


@dataclass(frozen=True)
class Boxes:
    """The part of the page about the classes of objects."""

    takeaway: str
    rows: list[ClassRow]
    curves: list[Curve]
    both_files: bool  # whether the curves and tables show the teacher's file too
    all_have_curves: bool
    found_takeaway: str
    sizes: list[SizeRow]  # empty where there is nothing to compare


@dataclass(frozen=True)
class FileBoxes:
    """What a stage's file found."""

    name: str  # the stage's
    detections: np.ndarray  # (N, D, 6): class, score, box


def true_boxes(run: RunRecord) -> np.ndarray | None:
    """Returns the targets of the test images, (N, M, 6): class, box, flag; None without predictions of boxes."""
    predictions = run.last.predictions or {}
    return predictions["labels"] if "deployed_detections" in predictions else None


def found_boxes(run: RunRecord) -> list[FileBoxes]:
    """Returns what the teacher's file found, if it is another one, and what the last stage's file found."""
    stages = [run.teacher, run.last] if len(run.stages) > 1 else [run.last]
    predictions = [(stage.short, stage.predictions or {}) for stage in stages]
    key = "deployed_detections"
    return [FileBoxes(name, arrays[key]) for name, arrays in predictions if key in arrays]


def box_figures(run: RunRecord) -> Boxes | None:
    """Returns the part about objects for the last stage's file; None without predictions of boxes."""
    targets, files = true_boxes(run), found_boxes(run)
    if targets is None:
        return None
    names = run.last.spec["classes"]
    by_file = {file.name: match(file.detections, targets, len(names)) for file in files}
    objects = by_file[run.last.short].objects.sum(0)
    present = np.flatnonzero(objects)
    shown = np.sort(present[np.argsort(-objects[present], kind="stable")][:_MOST_CURVES])
    return Boxes(
        takeaway=_takeaway(run),
        rows=_class_rows(run, objects),
        curves=[_curve(names[number], by_file, int(number)) for number in shown],
        both_files=len(files) > 1,
        all_have_curves=len(shown) == len(present),
        found_takeaway=_found_takeaway(files, targets),
        sizes=_size_rows(files, targets, names),
    )


def map_text(stage: StageRecord) -> str:
    """Returns the mean average precision at IoUs of 0.5 to 0.95 of a stage's file; empty for another task."""
    return _text(stage.metrics["deployed_map_percent"]) if "deployed_map_percent" in stage.metrics else ""


def nms_rows(run: RunRecord) -> list[NmsRow]:
    """Returns a row for each stage whose folder has a file with non-maximum suppression."""
    rows = []
    for stage in run.stages:
        figures = stage.metrics.get("with_nms")
        if figures:
            rows.append(
                NmsRow(
                    stage.name,
                    figures["file"],
                    _text(figures["map50_percent"]),
                    size_text(figures["size_bytes"]),
                    three_digits(figures["latency_ms_p50"]),
                    three_digits(figures["latency_ms_p95"]),
                    three_digits(figures["latency_ms_p50_without"]),
                )
            )
    return rows


def _takeaway(run: RunRecord) -> str:
    """Returns which class is found worst, and which lost most against the teacher."""
    names = run.last.spec["classes"]
    own, theirs = (stage.metrics["deployed_map50_by_class_percent"] for stage in (run.last, run.teacher))
    known = [(value, before, name) for value, before, name in zip(own, theirs, names, strict=True) if value is not None]
    lowest, _, hardest = min(known)
    text = f"Class {hardest} is found worst, with an AP50 of {lowest:.2f} %."
    if len(run.stages) == 1:
        return text
    lost, name = max((before - value, name) for value, before, name in known)
    change = f"Class {name} lost most, {lost:.2f} points." if lost > 0 else "No class lost against the teacher."
    return f"{text} {change}"


def _found_takeaway(files: list[FileBoxes], targets: np.ndarray) -> str:
    """Returns how many objects each file finds, how many detections are false, and the objects lost and gained."""
    scored = (targets[..., 0] >= 0) & (targets[..., 5] == 0)
    counts = [found_objects(file.detections, targets) for file in files]
    parts = [
        f"{'the teacher' if file.name == 'teacher' else file.name}'s file finds {(found & scored).sum():,} and has "
        f"{false.sum():,} false detection{'s' if false.sum() != 1 else ''}"
        for file, (found, false) in zip(files, counts, strict=True)
    ]
    text = f"A detection counts from a score of 0.5 on. Of {scored.sum():,} objects, {'; '.join(parts)}."
    if len(counts) == 1:
        return text
    theirs, own = (found & scored for found, _ in counts)
    return f"{text} Objects lost: {(theirs & ~own).sum():,}; gained: {(own & ~theirs).sum():,}."


def _class_rows(run: RunRecord, objects: np.ndarray) -> list[ClassRow]:
    own, theirs = run.last.metrics, run.teacher.metrics
    columns = zip(
        run.last.spec["classes"],
        objects,
        theirs["deployed_map50_by_class_percent"],
        own["deployed_map50_by_class_percent"],
        own["deployed_map50_by_class_ci95_percent"],
        theirs["deployed_map_by_class_percent"],
        own["deployed_map_by_class_percent"],
        strict=True,
    )
    return [
        ClassRow(
            name,
            int(count),
            _text(before),
            _text(now),
            interval(*span) if span else "",
            _text(tight_before),
            _text(tight),
        )
        for name, count, before, now, span, tight_before, tight in columns
    ]


def _size_rows(files: list[FileBoxes], targets: np.ndarray, names: list[str]) -> list[SizeRow]:
    if len(files) == 1:
        return []
    theirs, own = files
    rows = lost_objects(own.detections, theirs.detections, targets, len(names))
    counts = ("objects", "reference_found", "found", "lost", "gained")
    return [SizeRow(names[int(row["class"])], str(row["size"]), *(int(row[count]) for count in counts)) for row in rows]


def _curve(name: str, by_file: dict[str, Matches], number: int) -> Curve:
    """Charts the precision of class `number`: the teacher's file behind, the last stage's in front."""
    lines = []
    for at, (file, matches) in enumerate(by_file.items(), 1):
        recalls, precisions = precision_recall(matches, number)
        reached = precisions > 0
        points = [(100 * x, 100 * y) for x, y in zip(recalls[reached], precisions[reached], strict=True)]
        note = f"{file}: AP50 {100 * precisions.mean():.2f} %"
        lines.append(Line(points, "chosen" if at == len(by_file) else "teacher", note))
    title = f"Precision against recall, class {name}"
    drawing = curves(lines, f"curve-{number}", title, "recall, %  (right is better)", "precision, %  (up is better)")
    return Curve(name, drawing)


def _text(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.2f}"
