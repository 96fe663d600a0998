"""The output of a detector as one tensor: a row for each anchor, with all that its loss and its box need.

A row (9 + K + 1) holds the regression of the box, the anchor and the size of a pixel as shares of the image's side, and
the class logits, background first. Losses, distances and decoding then are functions of the outputs alone, as they are
for logits, and one tensor passes through pruning, quantization and the training loop.
"""

import math

import torch
from torch import Tensor

_REGRESSION, _ANCHOR, _PIXEL, _LOGITS = slice(0, 4), slice(4, 8), slice(8, 9), slice(9, None)
# The scale of regressions for centre and size, and the limit of the exponent: torchvision's for SSD.
_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_LARGEST_EXPONENT = math.log(1000 / 16)
_SMALLEST_SIDE = 1e-3  # pixels: the logarithm of a box without area would be infinite
_SMALLEST_SCORE = 1e-12
_FILE_SIDE = 2.0**14  # pixels, above all images: a power of two, so that scaling does not round


def priors(anchors: Tensor, side: int) -> Tensor:
    """Returns the constant columns (A, 5) of the rows, from anchors (A, 4), x1, y1, x2, y2 in pixels."""
    return torch.cat([anchors, torch.ones(len(anchors), 1)], 1) / side


def to_rows(regression: Tensor, constants: Tensor, logits: Tensor) -> Tensor:
    """Returns rows (N, A, 9 + K + 1) from regressions (N, A, 4), `priors` (A, 5) and logits (N, A, K + 1)."""
    return torch.cat([regression, constants.expand(regression.shape[0], -1, -1), logits], 2)


def to_decoded_rows(boxes: Tensor, scores: Tensor) -> Tensor:
    """Returns rows that `decode` turns into the boxes (N, A, 4) and scores (N, A, K): those of a file."""
    background = (1 - scores.sum(2, keepdim=True)).clamp_min(_SMALLEST_SCORE)
    logits = torch.cat([background, scores.clamp_min(_SMALLEST_SCORE)], 2).log()
    pixel = torch.full_like(boxes[..., :1], 1 / _FILE_SIDE)
    return torch.cat([torch.zeros_like(boxes), boxes * pixel, pixel, logits], 2)


def regressions(rows: Tensor) -> Tensor:
    """Returns the regressions (N, A, 4)."""
    return rows[..., _REGRESSION]


def anchors_of(rows: Tensor) -> Tensor:
    """Returns the anchors (N, A, 4) in pixels."""
    return rows[..., _ANCHOR] / rows[..., _PIXEL]


def class_logits(rows: Tensor) -> Tensor:
    """Returns the logits (N, A, K + 1), background first."""
    return rows[..., _LOGITS]


def decode(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns boxes (N, A, 4), in pixels and inside the image, and scores (N, A, K) from 0 to 1."""
    return _shares(rows).clamp(0, 1) / rows[..., _PIXEL], class_logits(rows).softmax(-1)[..., 1:]


def unlimited_boxes(rows: Tensor) -> Tensor:
    """Returns boxes (N, A, 4) in pixels that may reach out of the image, with the gradient that clamping cuts."""
    return _shares(rows) / rows[..., _PIXEL]


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Returns the regressions (..., 4) that turn `anchors` (..., 4) into `boxes` (..., 4), both in pixels."""
    size, box_size = ((x[..., 2:] - x[..., :2]).clamp_min(_SMALLEST_SIDE) for x in (anchors, boxes))
    moved = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / size
    return torch.cat([_WEIGHTS[0] * moved, _WEIGHTS[2] * (box_size / size).log()], -1)


def _shares(rows: Tensor) -> Tensor:
    """Returns boxes (N, A, 4) as shares of the image's side (Girshick et al. 2014, appendix C).

    A box is its anchor, moved by a share of its size and scaled by an exponential.
    """
    regression, anchors = regressions(rows), rows[..., _ANCHOR]
    top_left, bottom_right = anchors[..., :2], anchors[..., 2:]
    size = bottom_right - top_left
    center = top_left + size / 2 + regression[..., :2] / _WEIGHTS[0] * size
    half = (regression[..., 2:] / _WEIGHTS[2]).clamp_max(_LARGEST_EXPONENT).exp() * size / 2
    return torch.cat([center - half, center + half], -1)
