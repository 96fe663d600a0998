"""Losses with learned layers, hints and review: what they learn, and the papers' formulas in NumPy."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from compress.methods.distillation.feature_losses import Projections, Review, hints, review
from compress.methods.distillation.losses import relative_error
from compress.utils.errors import UserError
from tests.methods.distillation.features import STUDENT_SHAPES, TEACHER_SHAPES, double, features, levels, pooled


def test_hints_are_the_relative_errors_of_all_levels() -> None:
    own, wanted = levels(0, TEACHER_SHAPES), levels(9, TEACHER_SHAPES)
    expected = sum(
        np.mean((double(a) - double(b)) ** 2) / double(b).var(ddof=1) for a, b in zip(own, wanted, strict=True)
    )
    assert hints(own, wanted).item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(hints(own[:1], wanted[:1]), relative_error(own[0], wanted[0]))
    assert hints(wanted, wanted).item() == 0


def test_a_projection_is_a_convolution_with_batch_norm_by_hand() -> None:
    torch.manual_seed(0)
    projections, own = Projections([(3, 4, 4)], [(5, 2, 2)]), features(0, 6, 3, 4, 4)
    weight = double(projections.levels[0][0].weight)[:, :, 0, 0]
    outputs = np.einsum("oc,nchw->nohw", weight, pooled(double(own), 2))
    mean, variance = outputs.mean((0, 2, 3), keepdims=True), outputs.var((0, 2, 3), keepdims=True)
    expected = (outputs - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(double(projections([own])[0]), expected, rtol=1e-3, atol=1e-4)


def test_a_level_of_equal_shapes_is_passed_on() -> None:
    projections, student = Projections(STUDENT_SHAPES, TEACHER_SHAPES), levels(0, STUDENT_SHAPES)
    assert projections(student)[1] is student[1]
    assert not list(projections.levels[1].parameters())
    assert not list(Projections(STUDENT_SHAPES, STUDENT_SHAPES).parameters())


def test_projections_have_no_bias_and_one_weight_for_each_pair_of_channels() -> None:
    names = {name: tuple(weight.shape) for name, weight in Projections([(3, 8, 8)], [(4, 8, 8)]).named_parameters()}
    assert names == {"levels.0.0.weight": (4, 3, 1, 1), "levels.0.1.weight": (4,), "levels.0.1.bias": (4,)}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3, 4, 4), (5, 8, 8)), ((3, 4, 8), (5, 8, 4)), ((6, 3), (4, 5)), ((6, 3), (9, 3)), ((3,), (5,))],
)
def test_projections_have_the_teachers_shape(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    assert Projections([student], [teacher])(levels(0, [student]))[0].shape == (4, *teacher)


def test_tokens_are_projected_one_by_one() -> None:
    torch.manual_seed(0)
    projections, tokens = Projections([(6, 3)], [(6, 5)]).eval(), features(0, 4, 6, 3)
    expected = tokens @ projections.levels[0][0].weight[:, :, 0, 0].T / np.sqrt(1 + 1e-5)
    torch.testing.assert_close(projections([tokens])[0], expected)


def test_the_hierarchical_loss_by_hand() -> None:
    own, wanted = features(0, 4, 3, 8, 8), features(1, 4, 3, 8, 8)
    errors = [np.mean((double(own) - double(wanted)) ** 2)]
    errors += [np.mean((pooled(double(own), size) - pooled(double(wanted), size)) ** 2) for size in (4, 2, 1)]
    expected = np.dot(errors, [1, 0.5, 0.25, 0.125]) / 1.875
    assert review([own], [wanted]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "pooled_sizes", "weights"), [(4, (2, 1), (1, 0.5, 0.25)), (2, (1,), (1, 0.5)), (1, (), (1,))]
)
def test_features_are_pooled_only_to_smaller_sizes(size: int, pooled_sizes: tuple, weights: tuple) -> None:
    own, wanted = features(0, 4, 3, size, size), features(1, 4, 3, size, size)
    errors = [
        np.mean((pooled(double(own), each) - pooled(double(wanted), each)) ** 2) for each in (size, *pooled_sizes)
    ]
    assert review([own], [wanted]).item() == pytest.approx(np.dot(errors, weights) / sum(weights), rel=1e-5)


def test_the_levels_of_a_review_add_up_and_equal_ones_are_0() -> None:
    own, wanted = levels(0, TEACHER_SHAPES), levels(9, TEACHER_SHAPES)
    alone = sum(review([a], [b]).item() for a, b in zip(own, wanted, strict=True))
    assert review(own, wanted).item() == pytest.approx(alone, rel=1e-6)
    assert review(wanted, wanted).item() == 0


def convolved(maps: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    """A convolution with zero padding and batch norm on the batch's own statistics."""
    weight = double(layers[0].weight)
    border = weight.shape[2] // 2
    padded = np.pad(maps, ((0, 0), (0, 0), (border, border), (border, border)))
    height, width = maps.shape[2:]
    outputs = np.zeros((len(maps), len(weight), height, width))
    for row, column in product(range(weight.shape[2]), repeat=2):
        window = padded[:, :, row : row + height, column : column + width]
        outputs += np.einsum("oc,nchw->nohw", weight[:, :, row, column], window)
    mean, variance = outputs.mean((0, 2, 3), keepdims=True), outputs.var((0, 2, 3), keepdims=True)
    return (outputs - mean) / np.sqrt(variance + 1e-5)


def test_the_fusion_of_two_levels_by_hand() -> None:
    """Deep: 2x2 to the teacher's 2x2. Shallow, 4x4: its own features and the deep ones, doubled in size, each with a
    sigmoid as weight at each position; then to the teacher's 8x8."""
    torch.manual_seed(0)
    module = Review([(3, 4, 4), (6, 2, 2)], [(5, 8, 8), (4, 2, 2)])
    shallow, deep = features(0, 4, 3, 4, 4), features(1, 4, 6, 2, 2)
    fused = module([shallow, deep])

    deeper = convolved(double(deep), module.fusions[1].reduce)
    np.testing.assert_allclose(double(fused[1]), convolved(deeper, module.fusions[1].expand), rtol=1e-3, atol=1e-4)

    own, deeper = convolved(double(shallow), module.fusions[0].reduce), deeper.repeat(2, axis=2).repeat(2, axis=3)
    attention = module.fusions[0].attention[0]
    scores = np.einsum("oc,nchw->nohw", double(attention.weight)[:, :, 0, 0], np.concatenate([own, deeper], 1))
    shares = 1 / (1 + np.exp(-(scores + double(attention.bias)[:, None, None])))
    mixed = (own * shares[:, :1] + deeper * shares[:, 1:]).repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_allclose(double(fused[0]), convolved(mixed, module.fusions[0].expand), rtol=1e-3, atol=1e-4)


def test_deep_features_reach_shallow_levels_and_not_the_other_way_round() -> None:
    torch.manual_seed(0)
    module, student = Review(STUDENT_SHAPES, TEACHER_SHAPES), levels(0, STUDENT_SHAPES)
    before = module(student)
    deep = module([*student[:2], features(7, 4, 6, 4, 4)])
    shallow = module([features(7, 4, 3, 8, 8), *student[1:]])
    assert all(not torch.equal(old, new) for old, new in zip(before, deep, strict=True))
    assert [torch.equal(old, new) for old, new in zip(before, shallow, strict=True)] == [False, True, True]


def test_pooled_features_may_be_the_deepest_level() -> None:
    fused = Review([(3, 4, 4), (6,)], [(5, 4, 4), (7,)])([features(0, 4, 3, 4, 4), features(1, 4, 6)])
    assert [tuple(each.shape) for each in fused] == [(4, 5, 4, 4), (4, 7)]
    assert torch.isfinite(review(fused, [features(2, 4, 5, 4, 4), features(3, 4, 7)]))


def test_tokens_cannot_be_reviewed() -> None:
    with pytest.raises(UserError, match=r"level 1 of the features with the shapes \(6, 3\) \(student\)"):
        Review([(6, 3)], [(6, 5)])
