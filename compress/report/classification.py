"""Which classes the deployable file confuses, and which classes lost most accuracy against the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from compress.report.run_files import RunRecord
from compress.utils.statistics import mcnemar_p_value

_MOST_CLASSES = 100  # largest matrix; with more classes the page only lists the most frequent mistakes
_WITH_COUNTS, _WITH_NAMES = 15, 40  # most classes for counts in the cells, and for names on the axes
_LARGEST_SCALE = 1.5  # of a matrix of few classes: larger, its letters would be headlines
_LETTERS = 14  # of a class's name on an axis
_SHOWN = 8  # rows in each list
_MUCH_POINTS = 5.0  # that a class lost beyond the average, to be warned of


@dataclass(frozen=True)
class Mistake:
    """Images of one class that the file predicts as another class."""

    label: str
    taken_for: str
    images: int
    of: int  # test images of the true class
    teacher_images: int  # images for which the teacher's file makes this mistake


@dataclass(frozen=True)
class ClassLoss:
    """One class's accuracy in the teacher's file and in the deployed one."""

    name: str
    images: int
    teacher_percent: float
    percent: float

    @property
    def points_lost(self) -> float:
        return self.teacher_percent - self.percent


@dataclass(frozen=True)
class Classes:
    """The part of the page about classes."""

    matrix: Markup | None
    mistakes: list[Mistake]
    losses: list[ClassLoss]
    takeaway: str
    loss_takeaway: str
    loss_note: str  # how many points a single image of a class is worth


def class_figures(run: RunRecord) -> Classes | None:
    """Returns the part about classes for the last stage's file; None without predictions of classes."""
    if run.last.predictions is None or "deployed_top1" not in run.last.predictions:
        return None
    names, labels = run.last.spec["classes"], run.last.predictions["labels"]
    counts = confusion(labels, run.last.predictions["deployed_top1"], len(names))
    teacher = run.teacher.predictions if len(run.stages) > 1 else None
    theirs = confusion(labels, teacher["deployed_top1"], len(names)) if teacher is not None else None
    mistakes = _mistakes(counts, theirs, names)
    wrong = int(counts.sum() - np.trace(counts))
    takeaway = f"{len(labels) - wrong:,} of {len(labels):,} test images are right."
    if mistakes:
        first = mistakes[0]
        takeaway += (
            f" The most frequent mistake: class {first.label} taken for {first.taken_for}, "
            f"{first.images} of {first.of} images."
        )
    losses = class_losses(counts, theirs, names) if theirs is not None else []
    loss_takeaway = _loss_takeaway(losses)
    if teacher is not None and losses:
        loss_takeaway += _warning(losses, names.index(losses[0].name), run.last.predictions, teacher)
    matrix = _matrix(counts, names) if len(names) <= _MOST_CLASSES else None
    worse = [row for row in losses if row.points_lost > 0]
    usual = int(np.median(counts.sum(1)))
    points = f"{100 / max(usual, 1):.2g} points"
    note = f"Half of the classes have {usual:,} test images or fewer: one image is {points} or more there."
    return Classes(matrix, mistakes[:_SHOWN], worse[:_SHOWN], takeaway, loss_takeaway, note)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns counts of images (K, K): a row for each true class, a column for each predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _opacities(counts: np.ndarray) -> np.ndarray:
    """Returns the opacity of each cell (K, K), from 0 to 1, by its share of the images of its class.

    A mistake counts by the square root of its share, so that one image in a hundred is still visible.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    strengths = np.where(np.eye(len(counts), dtype=bool), 0.08 + 0.3 * shares, 0.2 + 0.35 * shares**0.5)
    return np.where(counts > 0, strengths, 0.0)


def _short_names(names: Sequence[str]) -> list[str]:
    """Returns the names of classes, shortened to the room on an axis."""
    return [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names]


def class_losses(counts: np.ndarray, theirs: np.ndarray, names: list[str]) -> list[ClassLoss]:
    """Returns the classes that have test images, the largest loss first."""
    found = [
        ClassLoss(name, int(images), 100 * theirs[at, at] / images, 100 * counts[at, at] / images)
        for at, (name, images) in enumerate(zip(names, counts.sum(1), strict=True))
        if images
    ]
    return sorted(found, key=lambda row: -row.points_lost)


def _mistakes(counts: np.ndarray, theirs: np.ndarray | None, names: list[str]) -> list[Mistake]:
    """Returns the pairs of true and predicted class that differ, the most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[: int((wrong > 0).sum())]
    return [
        Mistake(
            names[row],
            names[column],
            int(counts[row, column]),
            int(counts[row].sum()),
            int(counts[row, column] if theirs is None else theirs[row, column]),
        )
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
    ]


def _loss_takeaway(losses: list[ClassLoss]) -> str:
    if not losses:
        return ""
    worse = [row for row in losses if row.points_lost > 0]
    better = sum(row.points_lost < 0 for row in losses)
    if not worse:
        return "No class lost accuracy."
    first = worse[0]
    return (
        f"Class {first.name} lost most: {first.points_lost:.1f} points on its {first.images:,} images. "
        f"Of {len(losses)} classes {len(worse)} lost, {better} gained and {len(losses) - len(worse) - better} kept "
        "their accuracy."
    )


def _warning(losses: list[ClassLoss], worst: int, own: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> str:
    """Returns a sentence where the class with number `worst` lost much more than all classes on average, else nothing.

    McNemar's p-value of its images is multiplied by the number of classes, of which it is the worst (Bonferroni).
    """
    beyond = losses[0].points_lost - float(np.mean([row.points_lost for row in losses]))
    labels = own["labels"]
    right, before = ((found["deployed_top1"] == labels)[labels == worst] for found in (own, theirs))
    gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
    if beyond < _MUCH_POINTS or lost - gained < 2:
        return ""
    p_value = min(1.0, len(losses) * mcnemar_p_value(gained, lost))
    verdict = "chance does not explain it" if p_value < 0.05 else "with so few images it may be chance"
    return (
        f" Warning: class {losses[0].name} lost {beyond:.1f} points more than the classes on average; {verdict} "
        f"(McNemar's test, p = {p_value:.2g} for the worst of {len(losses)} classes)."
    )


def _matrix(counts: np.ndarray, names: list[str]) -> Markup:
    """Draws the matrix as SVG: grey on the diagonal, the accent colour for mistakes, darker for a larger share."""
    size = len(names)
    cell = 36 if size <= _WITH_COUNTS else 16 if size <= _WITH_NAMES else 7
    shown = _short_names(names)
    margin = 30 + (7 * max(len(name) for name in shown) if size <= _WITH_NAMES else 0)
    side = margin + cell * size + 2
    parts = [
        Markup('<text class="axis-label" x="{}" y="12">predicted</text>').format(margin),
        Markup(
            '<text class="axis-label" transform="translate(12 {}) rotate(-90)" text-anchor="end">true</text>'
        ).format(margin),
        Markup('<rect class="frame" x="{0}" y="{0}" width="{1}" height="{1}"/>').format(margin, cell * size),
    ]
    if size <= _WITH_NAMES:
        parts += [_class_name(name, margin, margin + cell * (at + 0.5), cell) for at, name in enumerate(shown)]
    strengths = _opacities(counts)
    for row, column in zip(*np.nonzero(counts), strict=True):
        parts.append(_cell(counts, strengths, int(row), int(column), margin, cell, names))
    return Markup(
        '<svg class="chart matrix" viewBox="0 0 {0} {0}" style="max-width:{1}px" role="img" '
        'aria-labelledby="matrix-title matrix-desc"><title id="matrix-title">Confusion matrix</title>'
        '<desc id="matrix-desc">A row for each true class, a column for each predicted class; the cells count test '
        "images. The mistakes are listed next to it.</desc>{2}</svg>"
    ).format(side, min(640, max(side, min(360, _LARGEST_SCALE * side))), Markup("").join(parts))


def _class_name(name: str, margin: int, middle: float, cell: int) -> Markup:
    """Draws a class's name before its row and above its column, there rotated where it would not fit."""
    place = f'x="{middle:.1f}" y="{margin - 8}" text-anchor="middle"'
    if 7 * len(name) > cell:
        place = f'transform="translate({middle + 4:.1f} {margin - 8}) rotate(-90)"'
    row = Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
        margin - 8, middle + 4, name
    )
    return row + Markup(f'<text class="tick" {place}>') + name + Markup("</text>")


def _cell(
    counts: np.ndarray, strengths: np.ndarray, row: int, column: int, margin: int, cell: int, names: list[str]
) -> Markup:
    images, of = int(counts[row, column]), int(counts[row].sum())
    x, y = margin + cell * column, margin + cell * row
    text = Markup("")
    if len(names) <= _WITH_COUNTS:
        text = Markup('<text class="count" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            x + cell / 2, y + cell / 2 + 4, images
        )
    return Markup(
        '<g><title>{} taken for {}: {} of {} images</title><rect class="{}" x="{}" y="{}" width="{}" height="{}" '
        'fill-opacity="{:.2f}"/>{}</g>'
    ).format(
        names[row], names[column], images, of, "right" if row == column else "wrong",
        x + 1, y + 1, cell - 1, cell - 1, strengths[row, column], text,
    )  # fmt: skip
