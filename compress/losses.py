"""What the stages minimise: cross-entropy for a teacher, Hinton's mixture for a student."""

import torch
from torch import nn
from torch.nn import functional as F

from compress.train import Loss


def distillation(
    logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """alpha T^2 KL(teacher || student), both softened by T, plus (1 - alpha) cross-entropy; logits (N, K), labels (N,).

    Hinton et al. 2015, section 2: T^2 keeps the gradients' size as T changes.
    """
    return alpha * temperature**2 * softened_kl(logits, teacher_logits, temperature) + (1 - alpha) * F.cross_entropy(
        logits, labels
    )


def softened_kl(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) in nats an image, of the distributions at `temperature`; logits (N, K)."""
    return F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def teacher_loss(teacher: nn.Module, temperature: float, alpha: float) -> Loss:
    """The loss of a student that learns from `teacher`, which is neither trained nor changed."""

    def loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            teacher_logits = teacher(images)
        logits = network(images)
        return distillation(logits, teacher_logits.clone(), labels, temperature, alpha), logits

    return loss
