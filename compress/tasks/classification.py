"""Classification with one class for each image: targets are class numbers (N,)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.data.dataset import NO_LABEL
from compress.export.file_outputs import LOGITS
from compress.tasks.auroc import aurocs
from compress.tasks.base import Figures, Outcome, Predictions
from compress.tasks.calibration import applied_temperature, calibration_figures
from compress.tasks.class_figures import class_figures, operating_points
from compress.utils.metric import TOP1
from compress.utils.missing import Unavailable
from compress.utils.resampling import mean_over_labels
from compress.utils.statistics import mcnemar_p_value, paired_difference, wilson_interval


class Classification:
    """Cross-entropy and top-1; the prediction is the class with the largest logit."""

    def __init__(self, class_weights: Tensor | None = None):
        """`class_weights` (K,) multiply the training loss of each image by its class."""
        self._class_weights = class_weights

    name = "classification"
    metric = TOP1
    files = LOGITS
    output_dims = 2

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the cross-entropy; `smoothing` is the share spread over all classes."""
        if self._class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        weights = self._class_weights.to(logits)
        return F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=smoothing).mean()

    def balanced(self, targets: Tensor, classes: int) -> "Classification":
        """Returns the task with weights N / (K n) of classes with n of N images (King and Zeng 2001, section 4.1)."""
        counts = torch.bincount(targets, minlength=classes)
        seen = counts > 0
        weights = len(targets) / (seen.sum() * counts.clamp_min(1))
        return Classification(torch.where(seen, weights, 0.0))

    def weighted(self, weights: Tensor) -> "Classification":
        """Returns the task in which an image's loss counts as often as `weights` (K,) say of its class."""
        return Classification(weights)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each image, (N,)."""
        return F.cross_entropy(logits, targets, reduction="none")

    def distance(self, logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns KL(reference || network) of the softmaxes at `temperature`, (N,) (Hinton et al. 2015, section 2)."""
        return F.kl_div(
            F.log_softmax(logits / temperature, 1),
            F.log_softmax(reference / temperature, 1),
            reduction="none",
            log_target=True,
        ).sum(1)

    def mistakes(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns 1 where the predicted class is not the target, else 0, (N,)."""
        return (logits.argmax(1) != targets).double()

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the top-1 accuracy in percent."""
        return 100 * int((logits.argmax(1) == targets).sum()) / len(targets)

    def difference(self, logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """Returns the difference in top-1, in percentage points, with the interval of Agresti and Min (2005)."""
        return paired_difference(*_discordant(logits.argmax(1), reference.argmax(1), targets), len(targets))

    def pseudo_targets(self, logits: Tensor) -> Tensor:
        """Returns the predicted classes, (N,)."""
        return logits.argmax(1)

    def predictions(self, targets: Tensor, logits: Tensor, deployed: dict[str, Tensor]) -> Predictions:
        """Returns class numbers (N,): `labels`, `top1`, `deployed_top1`, and NAME_top1 of each further target."""
        files = {f"{'deployed' if name == 'onnx' else name}_top1": own.argmax(1) for name, own in deployed.items()}
        return {"labels": targets, "top1": logits.argmax(1)} | files

    def figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns top-1 and top-5, Wilson's intervals of top-1, the loss, and how often torch and the file agree."""
        count, top1, deployed_top1 = len(targets), logits.argmax(1), deployed.argmax(1)
        right, deployed_right = int((top1 == targets).sum()), int((deployed_top1 == targets).sum())
        top5: float | Unavailable = Unavailable("top-5 says nothing with 5 classes or fewer")
        if logits.shape[1] > 5:
            top5 = 100 * float((logits.topk(5, 1).indices == targets[:, None]).any(1).double().mean())
        return {
            "top1_percent": 100 * right / count,
            "top1_ci95_percent": list(wilson_interval(right, count)),
            "top5_percent": top5,
            "loss": self.loss(logits, targets).item(),
            "images": count,
            "deployed_top1_percent": 100 * deployed_right / count,
            "deployed_top1_ci95_percent": list(wilson_interval(deployed_right, count)),
            "deployed_agreement_percent": 100 * int((top1 == deployed_top1).sum()) / count,
            "deployed_auroc_percent": _mean_auroc(deployed, targets),
            **class_figures(deployed_top1.numpy(), targets.numpy(), logits.shape[1]),
        }

    def screening(self, val: Outcome, test: Outcome, specificity: float | None) -> Figures:
        """Returns the temperature, the calibration errors, and the sensitivities, of each class against all others."""
        figures: Figures = {**calibration_figures(val, test)}
        if specificity is not None and not bool((val[1] == NO_LABEL).any()):
            at = applied_temperature(figures)
            scores = [_one_against_rest(logits / at, targets) for logits, targets in (val, test)]
            figures["operating_points"] = operating_points(scores[0], scores[1], specificity)
        return figures

    def target_figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns the top-1 of a further target's file, and how often it agrees with torch."""
        top1, count = deployed.argmax(1), len(targets)
        right = int((top1 == targets).sum())
        return {
            "top1_percent": 100 * right / count,
            "top1_ci95_percent": list(wilson_interval(right, count)),
            "agreement_percent": 100 * int((top1 == logits.argmax(1)).sum()) / count,
        }

    def compare(self, student: Predictions, teacher: Predictions | None) -> Figures:
        """Returns the agreement, and the difference in top-1 with its interval and McNemar's test."""
        labels, top1 = student["labels"], student["deployed_top1"]
        teacher_top1 = (teacher or student)["deployed_top1"]
        gained, lost = _discordant(top1, teacher_top1, labels)
        delta, interval = paired_difference(gained, lost, len(labels))
        return {
            "teacher_agreement_percent": 100 * int((top1 == teacher_top1).sum()) / len(labels),
            "top1_delta_points": delta,
            "top1_delta_ci95_points": list(interval),
            "mcnemar_p_value": mcnemar_p_value(gained, lost)
            if teacher
            else Unavailable("the teacher is compared to itself"),
        }


def _one_against_rest(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns each class's probability (N, K), and which one an image has, (N, K); of two classes the second alone."""
    classes = logits.shape[1]
    scores, has = logits.double().softmax(1).numpy(), F.one_hot(targets, classes).numpy()
    return (scores[:, 1:], has[:, 1:]) if classes == 2 else (scores, has)


def _mean_auroc(logits: Tensor, targets: Tensor) -> float | Unavailable:
    """Returns the mean AUROC of each class against all others, in percent (Hand and Till 2001, section 2)."""
    mean = float(mean_over_labels(aurocs(*_one_against_rest(logits, targets))))
    return Unavailable("all test images are of one class") if np.isnan(mean) else mean


def _discordant(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[int, int]:
    """Counts the images that only `student` classifies correctly, and those that only `teacher` does."""
    gained = int(((student == labels) & (teacher != labels)).sum())
    lost = int(((student != labels) & (teacher == labels)).sum())
    return gained, lost
