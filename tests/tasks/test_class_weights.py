"""Weights of classes: none on balanced data, the same total for each class on other data, scikit-learn's figures."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from compress.tasks import TASKS

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 3, generator=GENERATOR)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_data_is_weighted_as_it_is(smoothing: float) -> None:
    labels = torch.arange(60) % 3
    plain, weighted = TASKS["classification"], TASKS["classification"].balanced(labels, 3)
    assert weighted.loss(LOGITS, labels, smoothing).item() == pytest.approx(
        plain.loss(LOGITS, labels, smoothing).item()
    )


def test_each_class_weighs_as_much_as_scikit_learn_has_it() -> None:
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    expected = (F.cross_entropy(LOGITS, labels, reduction="none") * torch.tensor(weights)[labels]).mean()
    weighted = TASKS["classification"].balanced(labels, 3)
    assert weighted.loss(LOGITS, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    uniform = torch.zeros(60, 3)
    totals = [weighted.loss(uniform[labels == k], labels[labels == k]) * (labels == k).sum() for k in range(3)]
    assert [total.item() for total in totals] == pytest.approx([totals[0].item()] * 3, rel=1e-5)


def test_a_class_without_an_image_has_no_weight() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert torch.isfinite(TASKS["classification"].balanced(labels, 3).loss(LOGITS[:4], labels))


def test_figures_are_not_weighted() -> None:
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 5)
    weighted = TASKS["classification"].balanced(labels, 3)
    assert torch.equal(weighted.losses(LOGITS, labels), TASKS["classification"].losses(LOGITS, labels))


def test_images_with_a_label_weigh_as_much_as_those_without() -> None:
    targets = (torch.rand(60, 3, generator=GENERATOR) < torch.tensor([0.5, 0.1, 0.02])).long()
    targets[0] = 1
    weighted = TASKS["multilabel"].balanced(targets, 3)
    uniform = torch.zeros(60, 3)
    losses = F.binary_cross_entropy_with_logits(uniform, targets.float(), reduction="none")
    counts = targets.sum(0)
    scale = torch.where(targets > 0, 60 / (2 * counts), 60 / (2 * (60 - counts)))
    assert weighted.loss(uniform, targets).item() == pytest.approx((losses * scale).mean().item(), rel=1e-5)
    assert (scale * (targets > 0)).sum(0).tolist() == pytest.approx((scale * (targets == 0)).sum(0).tolist())


def test_weights_by_hand_that_are_balanced_do_what_balanced_does() -> None:
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    by_hand = TASKS["classification"].weighted(torch.tensor([60 / 120, 60 / 45, 60 / 15]))
    wanted = TASKS["classification"].balanced(labels, 3).loss(LOGITS, labels, 0.1)
    assert by_hand.loss(LOGITS, labels, 0.1).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_weights_of_several_labels_are_torchs_pos_weight() -> None:
    targets = (torch.rand(60, 3, generator=GENERATOR) < 0.3).long()
    weights = torch.tensor([1.0, 5.0, 2.0])
    wanted = F.binary_cross_entropy_with_logits(LOGITS, targets.float(), pos_weight=weights)
    assert TASKS["multilabel"].weighted(weights).loss(LOGITS, targets).item() == pytest.approx(wanted.item(), rel=1e-6)
