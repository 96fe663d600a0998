"""Object detection: targets are boxes with classes (N, M, 6), outputs are rows (N, A, 9 + K + 1), one for each anchor.

Files return boxes and scores, which become rows again, so that one function serves network and file.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from compress.data.boxes import CLASS, FLAG, OBJECT
from compress.export.file_outputs import FileOutputs
from compress.models.anchor_rows import class_logits, decode, to_decoded_rows
from compress.tasks.base import Figures, Outcome, Predictions
from compress.tasks.coco_metrics import coco_figures
from compress.tasks.detection_loss import distances, ssd_losses
from compress.utils.average_precision import Matches, average_precision, bootstrap, match
from compress.utils.detections import MIN_SCORE, PADDING, pad, select
from compress.utils.metric import MAP50
from compress.utils.missing import Unavailable
from compress.utils.resampling import interval, mean_over_labels, p_value

_SURE = 0.5  # the score of a detection that counts as an object
_SAME_IOU = 0.5  # two files agree on an object where their boxes overlap so much


def _to_rows(arrays: Sequence[np.ndarray]) -> Tensor:
    """Returns the rows of a file's boxes and scores."""
    boxes, scores = (torch.from_numpy(np.asarray(array)) for array in arrays)
    return to_decoded_rows(boxes, scores)


class Detection:
    """SSD's loss, and the mean average precision at an IoU of 0.5."""

    name = "detection"
    metric = MAP50
    files = FileOutputs(("boxes", "scores"), decode, _to_rows)
    output_dims = 3

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the mean of the images' losses; `smoothing` is the share spread over all classes."""
        return ssd_losses(logits, targets, smoothing).mean()

    def balanced(self, targets: Tensor, classes: int) -> "Detection":
        """Returns itself: its loss weighs objects against background already."""
        return self

    def weighted(self, weights: Tensor) -> "Detection":
        """Returns itself, as `balanced` does."""
        return self

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns SSD's loss of each image, (N,)."""
        return ssd_losses(logits, targets)

    def distance(self, logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns the divergence of the classes of likely objects, with the distance of their boxes, (N,)."""
        return distances(logits, reference, temperature)

    def mistakes(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns what each image's average precision at an IoU of 0.5 lacks to 1, a mean over its classes, (N,).

        An image without objects has 1 where something is detected with a score of 0.5 or more, else 0.
        """
        found = detections(logits)
        matches = match(found, targets.cpu().numpy(), _classes(logits))
        precision = mean_over_labels(average_precision(matches, np.eye(len(found)))) / 100
        false_alarm = (found[..., 1] >= _SURE).any(1)
        return torch.from_numpy(np.where(np.isnan(precision), false_alarm, 1 - precision)).to(logits.device)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the mean average precision at an IoU of 0.5, in percent."""
        return _map50(match(detections(logits), targets.numpy(), _classes(logits)))

    def difference(self, logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """Returns the difference in mAP50, in percentage points, with its bootstrapped interval."""
        classes = _classes(logits)
        pair = [match(detections(one), targets.numpy(), classes) for one in (logits, reference)]
        delta, resampled = _difference(*pair)
        low, high = interval(resampled)
        return delta, (low, high)

    def pseudo_targets(self, logits: Tensor) -> Tensor:
        """Returns the boxes (N, 100, 6) that are likelier than not."""
        found = torch.from_numpy(detections(logits, min_score=_SURE))
        flags = torch.where(found[..., :1] < 0, PADDING, OBJECT)
        return torch.cat([found[..., :1], found[..., 2:], flags], 2)

    def predictions(self, targets: Tensor, logits: Tensor, deployed: dict[str, Tensor]) -> Predictions:
        """Returns `labels`, and detections (N, 100, 6): class, score, box, of the network and of each file."""
        files = {_file_key(name): torch.from_numpy(detections(rows)) for name, rows in deployed.items()}
        classes = torch.tensor([_classes(logits)])
        return {"labels": targets, "classes": classes, "detections": torch.from_numpy(detections(logits))} | files

    def figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns mAP at an IoU of 0.5 and at 0.5 to 0.95, each class's, with bootstrapped intervals."""
        boxes, classes = targets.numpy(), _classes(logits)
        found, own = detections(logits), detections(deployed)
        torch_figures, file_figures = (coco_figures(one, boxes, classes) for one in (found, own))
        (resampled,) = bootstrap(match(own, boxes, classes))
        (torch_resampled,) = bootstrap(match(found, boxes, classes))
        return {
            "map50_percent": torch_figures["map50"],
            "map50_ci95_percent": interval(mean_over_labels(torch_resampled)),
            "map_percent": torch_figures["map"],
            "loss": self.loss(logits, targets).item(),
            "images": len(targets),
            "objects": int(((boxes[..., CLASS] >= 0) & (boxes[..., FLAG] == OBJECT)).sum()),
            "deployed_map50_percent": file_figures["map50"],
            "deployed_map50_ci95_percent": interval(mean_over_labels(resampled)),
            "deployed_map_percent": file_figures["map"],
            "deployed_agreement_percent": _agreement(found, own, classes),
            "deployed_map50_by_class_percent": file_figures["map50_by_class"],
            "deployed_map50_by_class_ci95_percent": [
                None if file_figures["map50_by_class"][at] is None else interval(resampled[:, at])
                for at in range(classes)
            ],
            "deployed_map_by_class_percent": file_figures["map_by_class"],
        }

    def screening(self, val: Outcome, test: Outcome, specificity: float | None) -> Figures:
        """Returns nothing: the scores of boxes are no probabilities of images."""
        return {}

    def target_figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns the mAP50 of a further target's file, and how often it agrees with torch on an object."""
        classes, own = _classes(logits), detections(deployed)
        matches = match(own, targets.numpy(), classes)
        (resampled,) = bootstrap(matches)
        return {
            "map50_percent": _map50(matches),
            "map50_ci95_percent": interval(mean_over_labels(resampled)),
            "agreement_percent": _agreement(detections(logits), own, classes),
        }

    def compare(self, student: Predictions, teacher: Predictions | None) -> Figures:
        """Returns the agreement on objects, and the difference in mAP50 on the same resamples of the images."""
        classes, boxes = int(student["classes"]), student["labels"].numpy()
        own, theirs = (one["deployed_detections"].numpy() for one in (student, teacher or student))
        delta, resampled = _difference(*(match(one, boxes, classes) for one in (own, theirs)))
        return {
            "teacher_agreement_percent": _agreement(theirs, own, classes),
            "map50_delta_points": delta,
            "map50_delta_ci95_points": interval(resampled),
            "bootstrap_p_value": p_value(resampled) if teacher else Unavailable("the teacher is compared to itself"),
        }


def detections(rows: Tensor, min_score: float = MIN_SCORE) -> np.ndarray:
    """Returns the detections (N, 100, 6) of rows (N, A, 9 + K + 1), after non-maximum suppression."""
    found = []
    for image in rows.detach():  # one at a time: the decoded boxes of a whole split may not fit into memory
        boxes, scores = (tensor.float().cpu().numpy() for tensor in decode(image))
        found.append(select(boxes, scores, min_score))
    return pad(found)


def _classes(rows: Tensor) -> int:
    return int(class_logits(rows).shape[2]) - 1  # without the background


def _file_key(name: str) -> str:
    return f"{'deployed' if name == 'onnx' else name}_detections"


def _map50(matches: Matches) -> float:
    return float(mean_over_labels(average_precision(matches))[0])


def _difference(matches: Matches, reference: Matches) -> tuple[float, np.ndarray]:
    """Returns the mAP50 minus that of `reference`, and the same on each resample of the images, (B,), in points."""
    resampled, reference_resampled = (mean_over_labels(one) for one in bootstrap(matches, reference))
    return _map50(matches) - _map50(reference), resampled - reference_resampled


def _agreement(found: np.ndarray, others: np.ndarray, classes: int) -> float:
    """Returns how many of the objects that either finds both find, in percent (an F1 score of one for the other)."""
    sure, other_sure = (np.where(one[..., 1:2] >= _SURE, one, PADDING) for one in (found, others))
    objects = np.concatenate([sure[..., :1], sure[..., 2:6], np.zeros_like(sure[..., :1])], -1)
    same = int(match(other_sure, objects, classes, _SAME_IOU).hits.sum())
    total = int((sure[..., 0] >= 0).sum() + (other_sure[..., 0] >= 0).sum())
    return 100 * 2 * same / total if total else 100.0
