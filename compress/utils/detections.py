"""Selects the boxes that a detector reports, from the scores of all its anchors, in NumPy alone."""

import numpy as np

PADDING = -2.0  # in rows that stand for no box
# What counts as a detection, in scores as in files with non-maximum suppression.
MIN_SCORE, MAX_IOU, MOST = 0.01, 0.5, 100


def select(
    boxes: np.ndarray,
    scores: np.ndarray,
    min_score: float = MIN_SCORE,
    max_iou: float = MAX_IOU,
    candidates: int = 1000,
    limit: int = MOST,
) -> np.ndarray:
    """Returns the boxes of one image, rows [class, score, x1, y1, x2, y2] (D, 6) float32 by falling score.

    `boxes` (A, 4) belong to A anchors, `scores` (A, K) to the classes of each. Of the pairs of an anchor and a class
    above `min_score`, the best `candidates` enter a greedy non-maximum suppression within each class, which drops a box
    whose IoU with a better one is above `max_iou`; at most `limit` boxes are returned. Equal scores are in the order of
    anchors, then of classes.
    """
    flat = scores.ravel()
    found = np.flatnonzero(flat > min_score)
    if len(found) > candidates:
        lowest = np.partition(flat[found], -candidates)[-candidates]
        found = found[flat[found] >= lowest]  # more than `candidates` where scores equal the lowest
    found = found[np.argsort(-flat[found], kind="stable")][:candidates]
    anchors, classes = np.divmod(found, scores.shape[1])
    kept = _suppress(boxes[anchors].astype(np.float32), classes, max_iou, limit)
    chosen = found[kept]
    return np.column_stack([classes[kept], flat[chosen], boxes[anchors[kept]]]).astype(np.float32)


def pad(rows: list[np.ndarray], limit: int = MOST) -> np.ndarray:
    """Returns the best `limit` rows of each image (d, 6) as one array (N, limit, 6) float32 with rows of PADDING."""
    padded = np.full((len(rows), limit, 6), PADDING, dtype=np.float32)
    for place, of_image in zip(padded, rows, strict=True):
        kept = of_image[:limit]
        place[: len(kept)] = kept
    return padded


def iou(one: np.ndarray, other: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Returns the intersection over union (n, m) float64 of boxes (n, 4) and (m, 4), 0 where both have no area.

    Where `crowd` (m,) is true, the intersection is divided by the area of `one` alone, as COCO does for a box that
    stands for a crowd.
    """
    one, other = one.astype(np.float64)[:, None], other.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = sides.clip(0).prod(-1)
    area, other_area = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other))
    whole = area + other_area - shared
    if crowd is not None:
        whole = np.where(crowd, area, whole)
    share: np.ndarray = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return share


def _suppress(boxes: np.ndarray, classes: np.ndarray, max_iou: float, limit: int) -> list[int]:
    """Returns the places of the boxes (n, 4) that remain, which come by falling score; at most `limit`."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas = (x2 - x1) * (y2 - y1)
    dropped = np.zeros(len(boxes), dtype=bool)
    kept: list[int] = []
    for at in range(len(boxes)):
        if dropped[at]:
            continue
        kept.append(at)
        if len(kept) == limit:
            break
        rest = slice(at + 1, None)
        width = np.minimum(x2[rest], x2[at]) - np.maximum(x1[rest], x1[at])
        height = np.minimum(y2[rest], y2[at]) - np.maximum(y1[rest], y1[at])
        shared = width.clip(0) * height.clip(0)
        close = shared > max_iou * (areas[rest] + areas[at] - shared)
        dropped[rest] |= close & (classes[rest] == classes[at])
    return kept
