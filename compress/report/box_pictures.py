"""Test images with the boxes of the truth, of the teacher's file and of the deployed one, side by side."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from compress.report.box_drawing import SIDE, DrawnBox, draw
from compress.report.detection import found_boxes, true_boxes
from compress.report.gallery import address
from compress.report.run_files import RunRecord
from compress.utils.average_precision import found_objects
from compress.utils.class_colours import class_colour

_SURE = 0.5  # the score from which on a detection is shown and counts
_IGNORED, _SAME = "not scored", "both files find the same objects"
_LETTERS = 13  # of a class's name on a box


@dataclass(frozen=True)
class Panel:
    """One picture of a card, with a count of its boxes."""

    caption: str
    count: str
    drawing: Markup


@dataclass(frozen=True)
class BoxCard:
    """One test image."""

    index: int
    change: str  # against the teacher's file
    panels: list[Panel]


@dataclass(frozen=True)
class ClassKey:
    """A class in the legend."""

    name: str
    colour: str


@dataclass(frozen=True)
class BoxGallery:
    """The images of the page; those in which the files find different objects come first."""

    cards: list[BoxCard]
    keys: list[ClassKey]
    takeaway: str
    ignored: bool  # whether an object is shown that no score counts


@dataclass(frozen=True)
class _Found:
    """What one file finds in one image."""

    objects: np.ndarray  # (M,) whether each is found
    rows: np.ndarray  # (d, 6), the detections that are shown
    false: np.ndarray  # (d,)


def box_gallery(run: RunRecord) -> BoxGallery | None:
    """Returns the images that the last stage kept; None where it kept none, or there is nothing to draw on them."""
    examples, all_targets, files = run.last.examples, true_boxes(run), found_boxes(run)
    if examples is None or all_targets is None or not len(examples["images"]):
        return None
    classes, cards, rows = run.last.spec["classes"], [], []
    for image, index in zip(examples["images"], examples["index"], strict=True):
        targets = all_targets[index]
        targets = targets[targets[:, 0] >= 0]
        found = {file.name: _found(file.detections[index], targets) for file in files}
        cards.append(_card(image, int(index), targets, found, classes))
        rows += [targets, *(one.rows for one in found.values())]
    shown = np.unique(np.concatenate([of_image[:, 0] for of_image in rows])).astype(int).tolist()
    return BoxGallery(
        cards,
        [ClassKey(classes[number], class_colour(number)) for number in shown],
        _takeaway(cards) if len(files) > 1 else "",
        ignored=bool((all_targets[examples["index"]][..., 5] > 0).any()),
    )


def _takeaway(cards: list[BoxCard]) -> str:
    """Returns whether the files find different objects, which the first image shows if any does."""
    if cards[0].change == _SAME:
        return "In no test image does only one of the two files find an object."
    return "The images in which only one of the two files finds an object come first."


def _found(detections: np.ndarray, targets: np.ndarray) -> _Found:
    """Returns what the detections (D, 6) of a file find of the objects (M, 6) of one image."""
    rows = detections[(detections[:, 0] >= 0) & (detections[:, 1] >= _SURE)]
    objects, false = found_objects(rows[None], targets[None], _SURE)
    return _Found(objects[0], rows, false[0])


def _card(image: np.ndarray, index: int, targets: np.ndarray, found: dict[str, _Found], classes: list[str]) -> BoxCard:
    scale, scored = SIDE / len(image), targets[:, 5] == 0
    name = f"test-image-{index}"
    picture = Markup('<image id="{0}" href="{1}" width="{2}" height="{2}"/>').format(name, address(image, SIDE), SIDE)
    count = _objects(int(scored.sum()))
    if not scored.all():
        count += f"; {(~scored).sum()} {_IGNORED}"
    boxes = _true_boxes(targets, classes, scale)
    panels = [Panel("truth", count, draw(picture, boxes, f"Test image {index}: {count}"))]
    again = Markup('<use href="#{}"/>').format(name)
    for file, one in found.items():
        count = f"{(one.objects & scored).sum()} of {_objects(int(scored.sum()))}; {one.false.sum()} false"
        boxes = _missed(targets[scored & ~one.objects], classes, scale) + _detected(one, classes, scale)
        panels.append(Panel(file, count, draw(again, boxes, f"Test image {index}, {file}: {count}")))
    return BoxCard(index, _change([one.objects & scored for one in found.values()]), panels)


def _objects(count: int) -> str:
    return f"{count} object" + ("s" if count != 1 else "")


def _change(found: list[np.ndarray]) -> str:
    """Returns which objects (M,) only one file finds, in words; empty for a teacher alone."""
    if len(found) == 1:
        return ""
    theirs, own = found
    lost, gained = int((theirs & ~own).sum()), int((own & ~theirs).sum())
    return f"{_objects(lost)} lost, {gained} gained" if lost or gained else _SAME


def _true_boxes(targets: np.ndarray, classes: list[str], scale: float) -> list[DrawnBox]:
    found = []
    for number, *corners, flag in targets.tolist():
        name, kind = classes[int(number)], "ignored" if flag else "found"
        note = f"{name}, {_IGNORED}" if flag else name
        found.append(DrawnBox(_scaled(corners, scale), class_colour(int(number)), _short(name), note, kind))
    return found


def _missed(targets: np.ndarray, classes: list[str], scale: float) -> list[DrawnBox]:
    return [
        DrawnBox(_scaled(corners, scale), "#ffffff", "", f"{classes[int(number)]}, missed", "missed")
        for number, *corners, _ in targets.tolist()
    ]


def _detected(found: _Found, classes: list[str], scale: float) -> list[DrawnBox]:
    drawn = []
    for (number, score, *corners), false in zip(found.rows.tolist(), found.false.tolist(), strict=True):
        name, kind = classes[int(number)], "false" if false else "found"
        note = f"{name}, score {score:.2f}{', false' if false else ''}"
        drawn.append(
            DrawnBox(_scaled(corners, scale), class_colour(int(number)), f"{_short(name)} {score:.2f}", note, kind)
        )
    return drawn


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def _scaled(corners: list[float], scale: float) -> tuple[float, float, float, float]:
    """Returns the corners in units of the drawing, inside it: detections may reach beyond the image."""
    left, top, right, bottom = (min(max(scale * at, 1.0), SIDE - 1.0) for at in corners)
    return left, top, right, bottom
