"""AUROCs against scikit-learn's and by hand, and intervals that hold what they claim."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from compress.tasks.auroc import aurocs, bootstrap
from compress.utils.resampling import interval, mean_over_labels, p_value


def labelled(images: int, labels: int, gap: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) that are higher by `gap` deviations where an image has the label; some of them are equal."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((images, labels)) < 0.3).astype(np.int64)
    return np.round(generator.normal(size=targets.shape) + gap * targets, 1), targets


def test_it_is_scikit_learns() -> None:
    scores, targets = labelled(500, 6, 0.8)
    assert aurocs(scores, targets) == pytest.approx(100 * roc_auc_score(targets, scores, average=None))


def test_by_hand() -> None:
    """Of three pairs one is in order, one is equal, and one is not: 1.5 of 3."""
    scores, targets = np.array([[0.1], [0.5], [0.5], [0.9]]), np.array([[0], [1], [0], [0]])
    assert aurocs(scores, targets)[0] == pytest.approx(100 * 1.5 / 3)
    assert aurocs(-scores, targets)[0] == pytest.approx(100 * 1.5 / 3)


def test_a_label_that_all_images_have_counts_in_no_mean() -> None:
    scores, targets = labelled(100, 3, 1.0)
    targets[:, 1] = 1
    found = aurocs(scores, targets)
    assert np.isnan(found[1])
    assert mean_over_labels(found) == pytest.approx((found[0] + found[2]) / 2)
    assert np.isnan(mean_over_labels(np.array([np.nan, np.nan])))


def test_order_alone_counts() -> None:
    scores, targets = labelled(200, 4, 0.5)
    assert aurocs(3 * scores - 7, targets) == pytest.approx(aurocs(scores, targets))
    assert aurocs(-scores, targets) == pytest.approx(100 - aurocs(scores, targets))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """For normal scores that are apart by one deviation the AUROC is 76.02 %; 5 % of 60 intervals may miss it."""
    truth, missed = 76.02, 0
    for seed in range(60):
        scores, targets = labelled(150, 1, 1.0, seed)
        low, high = interval(mean_over_labels(bootstrap(scores, targets=targets)[0]))
        missed += not low <= truth <= high
    assert missed <= 8


def test_the_same_network_twice_is_no_difference() -> None:
    scores, targets = labelled(100, 3, 1.0)
    first, second = bootstrap(scores, scores, targets=targets)
    assert (first == second).all()
    assert p_value(mean_over_labels(first) - mean_over_labels(second)) == 1.0


def test_a_better_network_is_better_beyond_chance() -> None:
    scores, targets = labelled(400, 3, 1.0)
    worse = np.random.default_rng(1).normal(size=scores.shape)
    first, second = bootstrap(scores, worse, targets=targets)
    difference = mean_over_labels(first) - mean_over_labels(second)
    assert interval(difference)[0] > 0
    assert p_value(difference) < 0.01
