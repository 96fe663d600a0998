"""Losses that pull a student's logits to its teacher's: the teacher's share of the loss, without the labels' own.

Each takes logits (N, K), the teacher's logits (N, K), the classes (N,) and a temperature, and returns a scalar. No
gradient reaches the teacher. All read the softmax of one class for each image. With K independent labels only `kd` has
a counterpart, the distance of that task; the others are undefined there, because they compare classes that exclude
each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.tasks import CLASSIFICATION

_DKD_BETA = 8.0  # weight of the other classes; that of the target class is 1
_MLKD_TEMPERATURES = (2, 3, 4, 5, 6)
_MLKD_MIDDLE_TEMPERATURE = 4
_MLKD_SHARE_IN_MASK = 0.5


def kd(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student) of the softmaxes at T, a mean over images (Hinton et al. 2015, section 2)."""
    return temperature**2 * CLASSIFICATION.distance(logits, teacher_logits.detach(), temperature).mean()


def kd_standardized(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns `kd` of the z-scores of each image's logits (Sun et al. 2024, arXiv:2403.01427, algorithm 1).

    The student's logits may then have a size of their own: a shift or a positive factor changes nothing.
    """
    return kd(_z_scores(logits), _z_scores(teacher_logits), labels, temperature)


def dkd(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns T^2 (TCKD + 8 NCKD), a mean over images (Zhao et al. 2022, arXiv:2203.08679, section 3).

    TCKD is the divergence of the two probabilities "the image's class" and "any other". NCKD is the divergence of the
    softmaxes over the K - 1 other classes. The authors weigh NCKD by 2 to 8 on CIFAR-100, depending on the networks,
    and let the loss grow linearly over the first 20 epochs; this function does neither.
    """
    target, others = _split_target(logits / temperature, labels)
    teacher_target, teacher_others = _split_target(teacher_logits.detach() / temperature, labels)
    tckd = CLASSIFICATION.distance(target, teacher_target)
    nckd = CLASSIFICATION.distance(others, teacher_others)
    return temperature**2 * (tckd + _DKD_BETA * nckd).mean()


def dist(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns T^2 (inter + intra), each 1 minus a mean correlation (Huang et al. 2022, arXiv:2205.10536, section 3).

    Inter correlates the two softmaxes at T over the classes of each image, and intra over the images of each class;
    both weigh 1 (beta and gamma), as in the authors' code (lib/models/losses/dist_kd.py of
    github.com/hunto/image_classification_sota). In a batch of one image intra is 1 and has no gradient.
    """
    student, teacher = (logits / temperature).softmax(1), (teacher_logits.detach() / temperature).softmax(1)
    inter = 1 - _row_correlations(student, teacher).mean()
    intra = 1 - _row_correlations(student.T, teacher.T).mean()
    return temperature**2 * (inter + intra)


def mlkd(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns half the sum, over five temperatures, of three distances: of images, batch and classes.

    It is multi-level logit distillation (Jin et al. 2023, "Multi-Level Logit Distillation", CVPR) without the second,
    strongly augmented view. The temperatures are the paper's 2 to 6 times T / 4. Scales and weights are those of the
    authors' code for its other view. The half stands for the confidence masks of that code: they multiply distances
    that are already means over the batch, and keep the half of the images or classes at or below the median. The
    distance of the batch grows with N and that of the classes with N^2; the authors have N = 64.
    """
    temperatures = [temperature * each / _MLKD_MIDDLE_TEMPERATURE for each in _MLKD_TEMPERATURES]
    return _MLKD_SHARE_IN_MASK * sum(_three_distances(logits, teacher_logits, labels, each) for each in temperatures)


@dataclass(frozen=True)
class LogitLoss:
    """A loss of logits with its weight and temperature as published for CIFAR-100."""

    loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    weight: float
    temperature: float


# The labels' cross-entropy has weight 0.1 beside kd, kd_standardized and mlkd, and 1 beside dkd and dist: to have that
# ratio, these two need alpha = 0.5. The figures of dist are in its authors' dist_cifar.yaml (kd_loss_weight, dist_t4).
LOGIT_LOSSES = {
    "kd": LogitLoss(kd, weight=0.9, temperature=4.0),
    "kd_standardized": LogitLoss(kd_standardized, weight=9.0, temperature=2.0),
    "dkd": LogitLoss(dkd, weight=1.0, temperature=4.0),
    "dist": LogitLoss(dist, weight=2.0, temperature=4.0),  # temperature 1 on ImageNet
    "mlkd": LogitLoss(mlkd, weight=0.9, temperature=4.0),
}


def _z_scores(logits: Tensor) -> Tensor:
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def _split_target(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits of "the image's class" and "any other" (N, 2), and those of the other classes (N, K - 1)."""
    classes = logits.shape[1]
    places = (labels[:, None] + torch.arange(classes, device=labels.device)) % classes
    ordered = logits.gather(1, places)  # the image's class comes first
    return torch.cat([ordered[:, :1], ordered[:, 1:].logsumexp(1, keepdim=True)], 1), ordered[:, 1:]


def _row_correlations(first: Tensor, second: Tensor) -> Tensor:
    """Returns Pearson's correlation (R,) of each row of two matrices (R, C); that of a constant row is 0."""
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-8)


def _three_distances(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns `kd` plus the squared distances of the Gram matrices of images (N, N) / N and of classes (K, K) / K."""
    student, teacher = (logits / temperature).softmax(1), (teacher_logits.detach() / temperature).softmax(1)
    batch = (student @ student.T - teacher @ teacher.T).square().sum() / student.shape[0]
    classes = (student.T @ student - teacher.T @ teacher).square().sum() / student.shape[1]
    return kd(logits, teacher_logits, labels, temperature) + batch + classes
