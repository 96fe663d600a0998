"""Independent labels: targets are 0 or 1 for each label (N, K), a sigmoid each says how likely it is."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from compress.tasks.auroc import aurocs, bootstrap, interval, mean_auroc, p_value
from compress.tasks.base import Figures, Predictions
from compress.utils.metric import AUROC
from compress.utils.missing import Unavailable


class Multilabel:
    """Binary cross-entropy and the mean AUROC of the labels."""

    name = "multilabel"
    metric = AUROC

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy, the mean over images and labels; `smoothing` draws each target towards one half."""
        wanted = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, wanted)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each image, the mean over its labels, (N,)."""
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)

    def distance(self, logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(reference || network) of the two outcomes of each label at `temperature`, summed over labels, (N,)."""
        own, theirs = logits / temperature, reference / temperature
        likely = theirs.sigmoid()
        with_label = likely * (F.logsigmoid(theirs) - F.logsigmoid(own))
        without = (1 - likely) * (F.logsigmoid(-theirs) - F.logsigmoid(-own))
        return (with_label + without).sum(1)

    def mistakes(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The share of labels that are wrong at a probability of one half."""
        return ((logits > 0) != (targets > 0)).double().mean(1)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """The mean AUROC in percent."""
        return float(mean_auroc(aurocs(*_arrays(logits, targets))))

    def difference(self, logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """Points of mean AUROC, with the bootstrapped interval of the difference."""
        delta, resampled = _difference(logits, reference, targets)
        low, high = interval(resampled)
        return delta, (low, high)

    def pseudo_targets(self, logits: Tensor) -> Tensor:
        """The labels that are more likely than not."""
        return (logits > 0).long()

    def predictions(self, targets: Tensor, logits: Tensor, deployed: dict[str, Tensor]) -> Predictions:
        """Logits (N, K) each: `scores`, `deployed_scores`, and NAME_scores of each further target; and `labels`."""
        files = {f"{'deployed' if name == 'onnx' else name}_scores": found for name, found in deployed.items()}
        return {"labels": targets, "scores": logits} | files

    def figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Mean AUROC and that of each label (null where the images say nothing of it), with bootstrapped intervals."""
        own, by_label, means, resampled = _with_resamples(deployed, targets)
        _, torch_by_label, torch_means, _ = _with_resamples(logits, targets)
        known = [not np.isnan(value) for value in by_label]
        return {
            "auroc_percent": float(mean_auroc(torch_by_label)),
            "auroc_ci95_percent": interval(torch_means),
            "label_accuracy_percent": 100 * (1 - self.mistakes(logits, targets).mean().item()),
            "loss": self.loss(logits, targets).item(),
            "images": len(targets),
            "deployed_auroc_percent": float(mean_auroc(by_label)),
            "deployed_auroc_ci95_percent": interval(means),
            "deployed_label_accuracy_percent": 100 * (1 - self.mistakes(deployed, targets).mean().item()),
            "deployed_agreement_percent": _agreement(logits, deployed),
            "deployed_auroc_by_label_percent": [float(v) if k else None for v, k in zip(by_label, known, strict=True)],
            "deployed_auroc_by_label_ci95_percent": [
                interval(resampled[:, at]) if known[at] else None for at in range(own.shape[1])
            ],
        }

    def target_figures(self, logits: Tensor, deployed: Tensor, targets: Tensor) -> Figures:
        """Mean AUROC of a further target's file, and how many decisions it shares with torch."""
        _, by_label, means, _ = _with_resamples(deployed, targets)
        return {
            "auroc_percent": float(mean_auroc(by_label)),
            "auroc_ci95_percent": interval(means),
            "agreement_percent": _agreement(logits, deployed),
        }

    def compare(self, found: Predictions, teacher: Predictions | None) -> Figures:
        """Agreement of the decisions, and the points of mean AUROC gained on the same resamples of the images."""
        own, theirs = found["deployed_scores"], (teacher or found)["deployed_scores"]
        delta, resampled = _difference(own, theirs, found["labels"])
        return {
            "teacher_agreement_percent": _agreement(own, theirs),
            "auroc_delta_points": delta,
            "auroc_delta_ci95_points": interval(resampled),
            "bootstrap_p_value": p_value(resampled) if teacher else Unavailable("the teacher is compared to itself"),
        }


def _arrays(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return logits.float().cpu().numpy(), targets.cpu().numpy()


def _with_resamples(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores (N, K), AUROCs (K,), resampled means (B,) and resampled AUROCs (B, K)."""
    scores, labels = _arrays(logits, targets)
    (resampled,) = bootstrap(scores, targets=labels)
    return scores, aurocs(scores, labels), mean_auroc(resampled), resampled


def _difference(logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[float, np.ndarray]:
    """Points of mean AUROC ahead of `reference`, and the same on each resample, (B,)."""
    (own, labels), (theirs, _) = _arrays(logits, targets), _arrays(reference, targets)
    first, second = bootstrap(own, theirs, targets=labels)
    delta = float(mean_auroc(aurocs(own, labels)) - mean_auroc(aurocs(theirs, labels)))
    return delta, mean_auroc(first) - mean_auroc(second)


def _agreement(logits: Tensor, others: Tensor) -> float:
    return 100 * ((logits > 0) == (others > 0)).double().mean().item()
