"""Classification with independent labels: targets are 0 or 1 for each label (N, K), its probability is a sigmoid."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.data.dataset import NO_LABEL
from compress.export.file_outputs import LOGITS
from compress.tasks.auroc import aurocs, bootstrap
from compress.tasks.base import Figures, Outcome, Predictions
from compress.tasks.calibration import applied_temperature, calibration_figures
from compress.tasks.class_figures import operating_points
from compress.utils.metric import AUROC
from compress.utils.missing import Unavailable
from compress.utils.resampling import interval, mean_over_labels, p_value


class Multilabel:
    """Binary cross-entropy and the mean AUROC of the labels."""

    def __init__(self, label_weights: tuple[Tensor, Tensor] | None = None):
        """`label_weights`, (K,) each, multiply the training loss of a label that an image lacks, and that it has."""
        self._label_weights = label_weights

    name = "multilabel"
    metric = AUROC
    files = LOGITS
    output_dims = 2

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns binary cross-entropy, a mean over images and labels; `smoothing` moves targets towards one half."""
        smoothed = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        if self._label_weights is None:
            return F.binary_cross_entropy_with_logits(logits, smoothed)
        without, having = (weights.to(logits) for weights in self._label_weights)
        return F.binary_cross_entropy_with_logits(logits, smoothed, torch.where(targets > 0, having, without))

    def balanced(self, targets: Tensor, classes: int) -> "Multilabel":
        """Returns the task in which, for each label, the images with it weigh as much as those without."""
        having = (targets > 0).sum(0)
        counts = torch.stack([len(targets) - having, having]).clamp_min(1)
        without, with_label = len(targets) / (2 * counts)
        return Multilabel((without, with_label))

    def weighted(self, weights: Tensor) -> "Multilabel":
        """Returns the task in which the images that have a label count `weights` (K,) times for it."""
        return Multilabel((torch.ones_like(weights), weights))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the binary cross-entropy of each image, a mean over its labels, (N,)."""
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)

    def distance(self, logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns KL(reference || network) of each label's two outcomes at `temperature`, a sum over labels, (N,)."""
        logits, reference = logits / temperature, reference / temperature
        probability = reference.sigmoid()
        with_label = probability * (F.logsigmoid(reference) - F.logsigmoid(logits))
        without = (1 - probability) * (F.logsigmoid(-reference) - F.logsigmoid(-logits))
        return (with_label + without).sum(1)

    def mistakes(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the share of labels that are wrong at a threshold of one half, (N,)."""
        return ((logits > 0) != (targets > 0)).double().mean(1)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the mean AUROC in percent."""
        return float(mean_over_labels(aurocs(*_arrays(logits, targets))))

    def difference(self, logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """Returns the difference in mean AUROC, in percentage points, with its bootstrapped interval."""
        delta, resampled = _difference(logits, reference, targets)
        low, high = interval(resampled)
        return delta, (low, high)

    def pseudo_targets(self, logits: Tensor) -> Tensor:
        """Returns 1 for the labels that are more likely than not, (N, K)."""
        return (logits > 0).long()

    def predictions(self, targets: Tensor, logits: Tensor, deployed: dict[str, Tensor]) -> Predictions:
        """Returns `labels`, and logits (N, K): `scores`, `deployed_scores`, and NAME_scores of each further target."""
        files = {f"{'deployed' if name == 'onnx' else name}_scores": scores for name, scores in deployed.items()}
        return {"labels": targets, "scores": logits} | files

    def figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns the mean AUROC and that of each label, null where it has none, with bootstrapped intervals."""
        own, by_label, means, resampled = _with_resamples(deployed, targets)
        _, torch_by_label, torch_means, _ = _with_resamples(logits, targets)
        known = [not np.isnan(value) for value in by_label]
        return {
            "auroc_percent": float(mean_over_labels(torch_by_label)),
            "auroc_ci95_percent": interval(torch_means),
            "label_accuracy_percent": 100 * (1 - self.mistakes(logits, targets).mean().item()),
            "loss": self.loss(logits, targets).item(),
            "images": len(targets),
            "deployed_auroc_percent": float(mean_over_labels(by_label)),
            "deployed_auroc_ci95_percent": interval(means),
            "deployed_label_accuracy_percent": 100 * (1 - self.mistakes(deployed, targets).mean().item()),
            "deployed_agreement_percent": _agreement(logits, deployed),
            "deployed_auroc_by_label_percent": [float(v) if k else None for v, k in zip(by_label, known, strict=True)],
            "deployed_auroc_by_label_ci95_percent": [
                interval(resampled[:, at]) if known[at] else None for at in range(own.shape[1])
            ],
        }

    def screening(self, val: Outcome, test: Outcome, specificity: float | None) -> Figures:
        """Returns the temperature, the calibration errors of all decisions, and the sensitivities of each label."""
        figures: Figures = {**calibration_figures(_decisions(*val), _decisions(*test))}
        if specificity is not None and not bool((val[1] == NO_LABEL).any()):
            at = applied_temperature(figures)
            scores, others = (
                ((logits.double() / at).sigmoid().numpy(), targets.numpy()) for logits, targets in (val, test)
            )
            figures["operating_points"] = operating_points(scores, others, specificity)
        return figures

    def target_figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Returns the mean AUROC of a further target's file, and the share of decisions in which torch agrees."""
        _, by_label, means, _ = _with_resamples(deployed, targets)
        return {
            "auroc_percent": float(mean_over_labels(by_label)),
            "auroc_ci95_percent": interval(means),
            "agreement_percent": _agreement(logits, deployed),
        }

    def compare(self, student: Predictions, teacher: Predictions | None) -> Figures:
        """Returns the agreement of the decisions, and the difference in mean AUROC on the same resamples."""
        scores, teacher_scores = student["deployed_scores"], (teacher or student)["deployed_scores"]
        delta, resampled = _difference(scores, teacher_scores, student["labels"])
        return {
            "teacher_agreement_percent": _agreement(scores, teacher_scores),
            "auroc_delta_points": delta,
            "auroc_delta_ci95_points": interval(resampled),
            "bootstrap_p_value": p_value(resampled) if teacher else Unavailable("the teacher is compared to itself"),
        }


def _decisions(logits: Tensor, targets: Tensor) -> Outcome:
    """Returns each label of each image as an image of two classes: logits (N K, 2), whose softmax is the sigmoid."""
    flat = logits.reshape(-1, 1)
    return torch.cat([torch.zeros_like(flat), flat], 1), targets.reshape(-1).long()


def _arrays(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return logits.float().cpu().numpy(), targets.cpu().numpy()


def _with_resamples(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores (N, K), AUROCs (K,), resampled means (B,) and resampled AUROCs (B, K)."""
    scores, labels = _arrays(logits, targets)
    (resampled,) = bootstrap(scores, targets=labels)
    return scores, aurocs(scores, labels), mean_over_labels(resampled), resampled


def _difference(logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, np.ndarray]:
    """Returns the mean AUROC minus that of `reference`, and the same on each resample, (B,), in percentage points."""
    (scores, labels), (reference_scores, _) = _arrays(logits, targets), _arrays(reference, targets)
    resampled, reference_resampled = bootstrap(scores, reference_scores, targets=labels)
    delta = float(mean_over_labels(aurocs(scores, labels)) - mean_over_labels(aurocs(reference_scores, labels)))
    return delta, mean_over_labels(resampled) - mean_over_labels(reference_resampled)


def _agreement(logits: Tensor, others: Tensor) -> float:
    return 100 * float(((logits > 0) == (others > 0)).double().mean())
