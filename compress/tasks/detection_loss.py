"""The losses of an anchor-based detector, on rows (N, A, 9 + K + 1) of `compress.models.anchor_rows`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.data.boxes import BOX, CLASS, CROWD, FLAG
from compress.models.anchor_rows import anchors_of, class_logits, encode, regressions, unlimited_boxes

_MATCH_IOU = 0.5
_NEGATIVES = (
    3  # background anchors for each object's anchor, those with the highest loss (Liu et al. 2016, section 2.2)
)
_BACKGROUND, _FIRST, _IGNORED = 0, 1, -100  # class numbers of anchors; the last is cross_entropy's default


def match_anchors(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each anchor's class (N, A), background first, and the box (N, A, 4) of its object.

    An anchor takes the object that it overlaps most, by an IoU of one half or more; the best anchor of an object takes
    it in any case (torchvision's SSDMatcher). Anchors on crowds are ignored. `targets` is (N, M, 6).
    """
    # Imported late: they take seconds, which runs without boxes do without.
    from torchvision.models.detection._utils import SSDMatcher
    from torchvision.ops import box_iou

    matcher = SSDMatcher(_MATCH_IOU)
    count, anchors = rows.shape[1], anchors_of(rows)[0]
    classes = torch.full((len(rows), count), _BACKGROUND, device=rows.device)
    boxes = anchors.expand(len(rows), -1, -1).clone()
    for at, target in enumerate(targets.to(anchors.dtype)):
        crowds = target[(target[:, CLASS] >= 0) & (target[:, FLAG] == CROWD)]
        if len(crowds):
            overlapping = (box_iou(crowds[:, BOX], anchors) >= _MATCH_IOU).any(0)
            classes[at, overlapping] = _IGNORED
        objects = target[(target[:, CLASS] >= 0) & (target[:, FLAG] != CROWD)]
        if len(objects):
            matched = matcher(box_iou(objects[:, BOX], anchors))
            taken = matched >= 0
            classes[at, taken] = objects[matched[taken], CLASS].long() + _FIRST
            boxes[at, taken] = objects[matched[taken], BOX]
    return classes, boxes


def ssd_losses(rows: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Returns the loss of each image (N,): smooth L1 of boxes and cross-entropy of classes, for each matched anchor.

    Cross-entropy counts the matched anchors and three times as many of the background, those with the highest loss
    (Liu et al. 2016, section 2.2).
    """
    classes, boxes = match_anchors(rows, targets)
    taken = classes > _BACKGROUND
    matches = taken.sum(1).clamp_min(1)
    off = F.smooth_l1_loss(regressions(rows), encode(boxes, anchors_of(rows)), reduction="none").sum(2)
    logits = class_logits(rows).transpose(1, 2)
    entropy = F.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing)
    with torch.no_grad():
        ranked = torch.where(classes == _BACKGROUND, entropy, -torch.inf).argsort(1, descending=True).argsort(1)
        hard = (ranked < _NEGATIVES * matches[:, None]) & (classes == _BACKGROUND)
    return ((off * taken).sum(1) + (entropy * (taken | hard)).sum(1)) / matches


def distances(rows: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """Returns how far each image's outputs are from those of `reference`, (N,): in classes, and in boxes of objects.

    The divergence of an anchor's classes weighs as much as the surer of the two networks is of an object there: most
    anchors are background to both, and would outweigh all others (Chen et al. 2017, "Learning efficient object
    detection models with knowledge distillation", section 3.2). The regressions of boxes count, by smooth L1, where
    the reference holds an object likelier than not. Their term is divided by the square of the temperature, which
    does not soften it, because distillation multiplies by that.
    """
    logits, reference_logits = class_logits(rows), class_logits(reference)
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, 2),
        F.log_softmax(reference_logits / temperature, 2),
        reduction="none",
        log_target=True,
    ).sum(2)
    sure = 1 - reference_logits.softmax(2)[..., _BACKGROUND]
    weights = torch.maximum(sure, 1 - logits.detach().softmax(2)[..., _BACKGROUND])
    objects = (sure > 0.5).to(rows.dtype)
    anchors = anchors_of(reference)
    boxes, reference_boxes = (encode(unlimited_boxes(one), anchors) for one in (rows, reference))
    off = F.smooth_l1_loss(boxes, reference_boxes, reduction="none").sum(2)
    in_classes = (divergence * weights).sum(1) / sure.sum(1).clamp_min(1)
    return in_classes + (off * objects).sum(1) / objects.sum(1).clamp_min(1) / temperature**2
