"""Mixed batches: shares that are those of the pixels, and draws that the global seed repeats."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.data.dataset import Batch
from compress.methods.distillation.losses import label_loss
from compress.methods.distillation.mixing import Mixing, cutmix, mixup
from compress.tasks import TASKS


def batch() -> Batch:
    """Each image has one value, its number."""
    images = torch.arange(8.0)[:, None, None, None].expand(8, 2, 16, 12).clone()
    return Batch(images, torch.arange(8), torch.arange(8))


def test_nothing_is_mixed_or_drawn_by_default() -> None:
    torch.manual_seed(0)
    mixed = Mixing()(batch())
    assert torch.equal(mixed.batch.images, batch().images)
    assert mixed.over_labels(lambda labels: labels.sum()) == 28
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert drawn == torch.rand(())


def test_mixup_is_the_weighted_mean() -> None:
    images, share = mixup(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 0.25)
    assert share == 0.25
    assert images.tolist() == [[[[0.75, 0.75], [0.75, 0.75]]]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_cutmix_returns_the_share_of_the_pixels_that_stay(share: float, seed: int) -> None:
    torch.manual_seed(seed)
    images, kept = cutmix(torch.zeros(1, 1, 16, 12), torch.ones(1, 1, 16, 12), share)
    assert 1 - images.mean().item() == pytest.approx(kept, abs=1e-6)
    assert kept >= share - 1e-9  # the border only makes the rectangle smaller


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(mixup=0.4, cutmix=1.0)])
def test_labels_belong_to_the_images_and_the_seed_repeats_them(mixing: Mixing) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        mixed = mixing(batch())
        found = mixed.over_labels(lambda labels: labels.float())
        torch.testing.assert_close(mixed.batch.images.mean((1, 2, 3)), found, rtol=1e-4, atol=1e-4)
        torch.manual_seed(seed)
        assert torch.equal(mixing(batch()).batch.images, mixed.batch.images)


def test_both_are_used_where_both_are_set() -> None:
    """Images of one value stay so when they are blended."""
    torch.manual_seed(0)
    blended = [
        bool((mixed.batch.images.std((1, 2, 3)) < 1e-6).all())
        for mixed in (Mixing(1.0, 1.0)(batch()) for _ in range(20))
    ]
    assert {True, False} == set(blended)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_loss_of_mixed_labels_is_that_of_targets_in_their_shares(task: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 12, 8))
    labels = torch.arange(8) if task == "classification" else torch.randint(0, 2, (8, 8))
    mixed = Mixing(mixup=1.0)(batch()._replace(labels=labels))
    value, logits = label_loss(0.0, TASKS[task], lambda examples: mixed)(network, batch())
    both = labels, mixed.other_labels
    rows, others = [F.one_hot(each, 8) for each in both] if task == "classification" else both
    targets = mixed.share * rows + (1 - mixed.share) * others
    if task == "classification":
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        torch.testing.assert_close(value, F.cross_entropy(logits, targets))
    else:
        torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(logits, targets))
