"""How well the deployable file predicts each label, for the page of a run with independent labels."""

from dataclasses import dataclass

from compress.report.run_files import RunRecord
from compress.report.verdict import interval


@dataclass(frozen=True)
class LabelRow:
    """A label with the AUROC of the last stage's file and of the teacher's."""

    name: str
    images: int  # test images that have the label
    auroc: str
    auroc_interval: str
    teacher: str


@dataclass(frozen=True)
class Labels:
    """The part of the page about labels."""

    rows: list[LabelRow]
    takeaway: str


def label_figures(run: RunRecord) -> Labels | None:
    """Returns the part about labels for the last stage's file; None for single-class images or without predictions."""
    own = run.last.metrics.get("deployed_auroc_by_label_percent")
    if own is None or run.last.predictions is None:
        return None
    names, images = run.last.spec["classes"], run.last.predictions["labels"].sum(0)
    teacher = run.teacher.metrics["deployed_auroc_by_label_percent"]
    spans = run.last.metrics["deployed_auroc_by_label_ci95_percent"]
    rows = [
        LabelRow(name, int(count), _text(value), interval(*span) if span else "", _text(before))
        for name, count, value, span, before in zip(names, images, own, spans, teacher, strict=True)
    ]
    known = [(value, name) for value, name in zip(own, names, strict=True) if value is not None]
    lowest, hardest = min(known)
    return Labels(rows, f"Label {hardest} is predicted worst, with an AUROC of {lowest:.2f} %.")


def _text(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.2f}"
