"""Computes the average precision of each class as COCO does, and its resamples for the bootstrap over images.

Targets (N, M, 6) have rows [class, x1, y1, x2, y2, flag], detections (N, D, 6) rows [class, score, x1, y1, x2, y2].
Rows whose class is negative are padding. A flag above 0 marks an object that is neither found nor missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compress.utils.detections import iou as iou_of
from compress.utils.resampling import resamples

_RECALLS = np.linspace(0, 1, 101)
_SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": np.inf}  # areas below which an object has that size, as COCO's


@dataclass(frozen=True)
class Matches:
    """The F detections that count in N images, by falling score, and the number of objects of K classes."""

    images: np.ndarray  # (F,)
    classes: np.ndarray  # (F,)
    scores: np.ndarray  # (F,)
    hits: np.ndarray  # (F,), true where a detection found an object
    objects: np.ndarray  # (N, K)


def match(detections: np.ndarray, targets: np.ndarray, classes: int, iou: float = 0.5) -> Matches:
    """Matches each detection to an object of its class that overlaps it by `iou`, as COCO's evaluation does.

    Detections that match an object with a flag do not count.
    """
    objects = np.zeros((len(targets), classes), dtype=np.int64)
    parts = []
    for image, (rows, boxes) in enumerate(_images(detections, targets)):
        matched = _match_image(rows, boxes, iou)
        real = boxes[:, 5] == 0
        np.add.at(objects[image], boxes[real, 0].astype(np.int64), 1)
        hits = (matched >= 0) & np.append(real, False)[matched]
        counts = hits | (matched < 0)
        parts.append(np.column_stack([np.full(len(rows), image), rows[:, :2], hits])[counts])
    flat = np.concatenate([np.zeros((0, 4)), *parts])
    flat = flat[np.argsort(-flat[:, 2], kind="stable")]
    return Matches(flat[:, 0].astype(np.int64), flat[:, 1].astype(np.int64), flat[:, 2], flat[:, 3] > 0, objects)


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the average precision (B, K) in percent, the mean of 101 precisions; NaN for a class without objects.

    `weights` (B, N) are how often each image is in each of B resamples; by default B is 1, with each image once.
    """
    if weights is None:
        weights = np.ones((1, len(matches.objects)))
    totals = weights @ matches.objects
    columns = []
    for number, total in enumerate(totals.T):
        precision = _precisions(matches, number, weights)
        columns.append(np.where(total > 0, 100 * precision.mean(1), np.nan))
    return np.stack(columns, axis=1)


def bootstrap(*matches: Matches) -> list[np.ndarray]:
    """Returns the average precisions (B, K) of each of `matches` on the same B seeded resamples of the images."""
    parts: list[list[np.ndarray]] = [[] for _ in matches]
    for weights in resamples(len(matches[0].objects)):
        for part, of_network in zip(parts, matches, strict=True):
            part.append(average_precision(of_network, weights))
    return [np.concatenate(part) for part in parts]


def precision_recall(matches: Matches, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns recalls (101,) and the best precision (101,) at each or beyond it, from 0 to 1, of class `number`.

    The mean of the precisions is the average precision. They are NaN for a class without objects.
    """
    precision = _precisions(matches, number, np.ones((1, len(matches.objects))))[0]
    return _RECALLS.copy(), precision if matches.objects[:, number].any() else np.full_like(precision, np.nan)


def lost_objects(
    detections: np.ndarray, reference_detections: np.ndarray, targets: np.ndarray, classes: int, min_score: float = 0.5
) -> list[dict[str, int | str]]:
    """Counts the objects that a network and a reference find at an IoU of 0.5, for each class and size of objects.

    A detection counts from `min_score` on. Sizes are COCO's, in pixels of the network's input. Objects that the
    reference alone finds are `lost`, those that the network alone finds are `gained`. Rows without objects are left
    out.
    """
    found, _ = found_objects(detections, targets, min_score)
    reference_found, _ = found_objects(reference_detections, targets, min_score)
    areas = (targets[..., 3] - targets[..., 1]) * (targets[..., 4] - targets[..., 2])
    sizes = np.searchsorted(list(_SIZES.values()), areas, side="right")
    rows: list[dict[str, int | str]] = []
    for number in range(classes):
        for at, size in enumerate(_SIZES):
            chosen = (targets[..., 0] == number) & (targets[..., 5] == 0) & (sizes == at)
            if not chosen.any():
                continue
            counts = {
                "objects": chosen,
                "found": chosen & found,
                "reference_found": chosen & reference_found,
                "lost": chosen & reference_found & ~found,
                "gained": chosen & found & ~reference_found,
            }
            row: dict[str, int | str] = {"class": number, "size": size}
            rows.append(row | {name: int(which.sum()) for name, which in counts.items()})
    return rows


def found_objects(detections: np.ndarray, targets: np.ndarray, min_score: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Returns which objects (N, M) are found at an IoU of 0.5, and which detections (N, D) are false.

    A detection counts from `min_score` on. It is false where it matches no object, not even one with a flag.
    """
    found, false = np.zeros(targets.shape[:2], dtype=bool), np.zeros(detections.shape[:2], dtype=bool)
    for image, (rows, boxes) in enumerate(zip(detections, targets, strict=True)):
        sure = np.flatnonzero((rows[:, 0] >= 0) & (rows[:, 1] >= min_score))
        sure = sure[np.argsort(-rows[sure, 1], kind="stable")]
        real = np.flatnonzero(boxes[:, 0] >= 0)
        matched = _match_image(rows[sure], boxes[real], 0.5)
        found[image, real[matched[matched >= 0]]] = True
        false[image, sure[matched < 0]] = True
    return found, false


def _images(detections: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the detections by falling score and the objects of each image, without padding."""
    for rows, boxes in zip(detections, targets, strict=True):
        rows = rows[rows[:, 0] >= 0]
        yield rows[np.argsort(-rows[:, 1], kind="stable")], boxes[boxes[:, 0] >= 0]


def _match_image(rows: np.ndarray, boxes: np.ndarray, iou: float) -> np.ndarray:
    """Returns the place of the object that each detection of one image matches, (d,); -1 where there is none.

    A detection takes the free object that it overlaps most, one with a flag only where there is no other. Objects with
    a flag remain free.
    """
    flagged = boxes[:, 5] > 0
    overlaps = iou_of(rows[:, 2:], boxes[:, 1:5], crowd=flagged)
    overlaps[rows[:, :1] != boxes[None, :, 0]] = -1
    free = np.ones(len(boxes), dtype=bool)
    matched = np.full(len(rows), -1)
    close = overlaps >= min(iou, 1 - 1e-10)
    for at in np.flatnonzero(close.any(1)):
        choice = close[at] & free
        if (choice & ~flagged).any():
            choice &= ~flagged
        if not choice.any():
            continue
        best = np.where(choice, overlaps[at], -1)
        matched[at] = len(best) - 1 - best[::-1].argmax()  # COCO takes the last of equal ones
        free[matched[at]] = flagged[matched[at]]
    return matched


def _precisions(matches: Matches, number: int, weights: np.ndarray) -> np.ndarray:
    """Returns the best precision at each of 101 recalls or beyond it, (B, 101), for weights (B, N) of the images.

    Precision is needed where a hit is only, so that the detections up to each are summed first: most are no hits.
    """
    of_class = matches.classes == number
    images, hits = matches.images[of_class], matches.hits[of_class]
    ends = np.flatnonzero(hits)
    found = np.zeros((len(weights), len(_RECALLS)))
    if not len(ends):
        return found
    by_image = np.ascontiguousarray(weights.T)  # rows are faster to gather
    detected = np.add.reduceat(by_image[images[: ends[-1] + 1]], np.append(0, ends[:-1] + 1), axis=0).cumsum(0)
    true = by_image[images[ends]].cumsum(0)
    precision = np.divide(true, detected, out=np.zeros_like(true), where=detected > 0)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    total = by_image.T @ matches.objects[:, number]
    recall = np.divide(true, total, out=np.zeros_like(true), where=total > 0)
    for row, of_row, precisions in zip(found, recall.T, envelope.T, strict=True):
        first = np.searchsorted(of_row, _RECALLS)
        reached = first < len(of_row)
        row[reached] = precisions[first[reached]]
    return found
