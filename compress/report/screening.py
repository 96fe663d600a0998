"""What the deployable file finds of each class, and how sure it is, for the page of a run."""

from dataclasses import dataclass
from typing import Any

from compress.report.run_files import RunRecord
from compress.report.verdict import interval

_MOST_CLASSES = 100


@dataclass(frozen=True)
class ClassRow:
    """A class, each figure in percent as text."""

    name: str
    images: int
    teacher_recall: str
    recall: str
    precision: str
    f1: str
    sensitivity: str  # at the specificity asked for
    specificity: str  # that was reached on test images


@dataclass(frozen=True)
class Screening:
    """The part of the page about each class and about confidence."""

    takeaway: str
    rows: list[ClassRow]  # empty with too many classes, and where images have several labels
    points: list[ClassRow]  # those whose sensitivity was measured
    specificity: str  # asked for, in percent
    points_note: str  # where the thresholds come from
    confidence: str


def screening(run: RunRecord) -> Screening | None:
    """Returns the part about classes and confidence; None for a run of an earlier version, and for boxes."""
    own, theirs = run.last.metrics, run.teacher.metrics
    if "deployed_calibration_error_percent" not in own:
        return None
    names = run.last.spec["classes"]
    points = own.get("operating_points")
    with_point = names[1:] if points and len(points) < len(names) else names
    by_name = dict(zip(with_point, points or [], strict=False))
    rows = [_row(number, name, run, by_name.get(name)) for number, name in enumerate(names)]
    asked = run.config["measure"].get("specificity") if points else None
    return Screening(
        _takeaway(own, theirs, names),
        rows if own.get("deployed_recall_by_class_percent") and len(names) <= _MOST_CLASSES else [],
        [row for row in rows if row.name in by_name][:_MOST_CLASSES],
        "" if asked is None else f"{100 * asked:g}",
        _points_note(own.get("val_images")),
        _confidence(own),
    )


def _row(number: int, name: str, run: RunRecord, point: dict[str, Any] | None) -> ClassRow:
    own, theirs = run.last.metrics, run.teacher.metrics
    figures = (
        _text((metrics.get(f"deployed_{figure}_by_class_percent") or {number: None})[number])
        for metrics, figure in ((theirs, "recall"), (own, "recall"), (own, "precision"), (own, "f1"))
    )
    labels = None if run.last.predictions is None else run.last.predictions["labels"]
    images = 0 if labels is None else int((labels == number).sum() if labels.ndim == 1 else labels[:, number].sum())
    reached = (_text(None if point is None else point[f"{key}_percent"]) for key in ("sensitivity", "specificity"))
    return ClassRow(name, images, *figures, *reached)


def _points_note(val_images: int | None) -> str:
    images = "validation images" if val_images is None else f"{val_images:,} validation images"
    return (
        f"Each threshold is the lowest with that specificity on the {images}; with few of them, the specificity on "
        "other images may be far from it. Both columns are of the test images."
    )


def _takeaway(own: dict[str, Any], theirs: dict[str, Any], names: list[str]) -> str:
    if own.get("deployed_balanced_accuracy_percent") is None:
        return ""
    text = (
        f"Balanced accuracy, the mean recall of the classes, is {own['deployed_balanced_accuracy_percent']:.2f} % "
        f"(95 % interval {interval(*own['deployed_balanced_accuracy_ci95_percent'])})"
    )
    before = theirs.get("deployed_balanced_accuracy_percent")
    text += "" if before is None else f", the teacher's {before:.2f} %"
    auroc = own.get("deployed_auroc_percent")
    text += "." if auroc is None else f"; the mean AUROC of a class against all others is {auroc:.2f} %."
    recalls = zip(names, own["deployed_recall_by_class_percent"], strict=True)
    known = {name: recall for name, recall in recalls if recall is not None}
    least = min(known, key=known.__getitem__)
    return f"{text} Class {least} is found least, with a recall of {known[least]:.1f} %."


def _confidence(own: dict[str, Any]) -> str:
    if own["deployed_calibration_error_percent"] is None:
        return f"Confidence is not compared with accuracy: {own['unavailable']['temperature']}."
    text = f"Confidence and accuracy differ by {own['deployed_calibration_error_percent']:.1f} points on average"
    after = own.get("deployed_calibration_error_at_temperature_percent")
    if after is None:
        return f"{text}; all validation images are right, so that no temperature can be fitted."
    return f"{text}, and by {after:.1f} at the temperature {own['temperature']:.2f} that compress.predict applies."


def _text(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.1f}"
