"""Losses without learned layers, attention maps and relations: what they do not see, and the papers' formulas."""

from itertools import product

import numpy as np
import pytest
import torch

from compress.methods.distillation.feature_losses import attention_maps, relations
from compress.utils.errors import UserError
from tests.methods.distillation.features import STUDENT_SHAPES, TEACHER_SHAPES, double, features, levels, pooled


def attention_by_hand(own: np.ndarray, wanted: np.ndarray) -> float:
    """Equation 2: the squared difference of Q / |Q|, with Q the sum of squares over channels."""
    maps = []
    for each in (own, wanted):
        sums = (each**2).sum(1).reshape(len(each), -1)
        maps.append(sums / np.sqrt((sums**2).sum(1, keepdims=True)))
    return np.mean((maps[0] - maps[1]) ** 2)


def test_attention_maps_by_hand() -> None:
    student, teacher = levels(0, STUDENT_SHAPES[:2]), levels(9, TEACHER_SHAPES[:2])
    expected = sum(attention_by_hand(double(own), double(wanted)) for own, wanted in zip(student, teacher, strict=True))
    assert attention_maps(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_larger_of_two_attention_maps_is_pooled() -> None:
    small, large = features(0, 4, 3, 2, 2), features(1, 4, 5, 8, 8)
    expected = attention_by_hand(double(small), pooled(double(large), 2))
    assert attention_maps([small], [large]).item() == pytest.approx(expected, rel=1e-5)
    assert attention_maps([large], [small]).item() == pytest.approx(expected, rel=1e-5)


def test_attention_maps_do_not_see_the_order_number_or_size_of_channels() -> None:
    own, wanted = features(0, 4, 6, 4, 4), features(1, 4, 3, 4, 4)
    value = attention_maps([own], [wanted]).item()
    assert value > 1e-3
    assert attention_maps([own.flip(1)], [wanted]).item() == pytest.approx(value, rel=1e-5)
    assert attention_maps([-7 * own.repeat(1, 2, 1, 1)], [wanted]).item() == pytest.approx(value, rel=1e-5)
    assert attention_maps([5 * own], [own]).item() == pytest.approx(0, abs=1e-9)


def test_attention_of_tokens_is_that_of_maps_with_their_positions_in_a_row() -> None:
    own, wanted = features(0, 4, 3, 2, 4), features(1, 4, 5, 2, 4)
    tokens = [maps.flatten(2).transpose(1, 2) for maps in (own, wanted)]
    value = attention_maps([own], [wanted]).item()
    assert attention_maps([tokens[0]], [tokens[1]]).item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (1, 5)])
def test_features_without_positions_have_no_attention(shape: tuple[int, ...]) -> None:
    student, teacher = levels(0, [(3, 4, 4), shape]), levels(9, [(3, 4, 4), shape])
    with pytest.raises(UserError, match="level 2 of the features with one position"):
        attention_maps(student, teacher)


def test_a_dead_layer_has_a_finite_gradient_of_attention() -> None:
    own = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_maps([own], [features(0, 2, 3, 4, 4)]).backward()
    assert torch.isfinite(own.grad).all()


def huber(difference: np.ndarray) -> np.ndarray:
    absolute = np.abs(difference)
    return np.where(absolute < 1, difference**2 / 2, absolute - 0.5)


def relations_by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    count = len(student)
    distances, cosines = [], []
    for vectors in (student, teacher):
        table = np.array([[np.linalg.norm(one - other) for one in vectors] for other in vectors])
        distances.append(table / table[table > 0].mean())
        angles = np.zeros((count, count, count))
        for middle, one, other in product(range(count), repeat=3):
            if middle not in (one, other):
                sides = vectors[one] - vectors[middle], vectors[other] - vectors[middle]
                angles[middle, one, other] = sides[0] @ sides[1] / (np.linalg.norm(sides[0]) * np.linalg.norm(sides[1]))
        cosines.append(angles)
    return 25 * huber(distances[0] - distances[1]).mean() + 50 * huber(cosines[0] - cosines[1]).mean()


def test_relations_by_hand() -> None:
    student, teacher = features(0, 5, 3), features(1, 5, 7)
    teacher[0] *= 20  # a distance that differs by more than 1, where Huber's loss is linear
    expected = relations_by_hand(double(student), double(teacher))
    assert relations(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_relations_do_not_see_a_rotation_a_shift_or_a_factor() -> None:
    vectors = features(0, 6, 4)
    rotation = torch.linalg.qr(features(1, 4, 4)).Q
    assert relations(3 * vectors @ rotation + 2, vectors).item() == pytest.approx(0, abs=1e-4)
    assert relations(vectors * torch.tensor([3.0, 1, 1, 1]), vectors) > 0.1


@pytest.mark.parametrize("images", [1, 2])
def test_relations_of_fewer_than_three_images_are_0(images: int) -> None:
    student = features(0, images, 4).requires_grad_()
    value = relations(student, features(1, images, 5))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.grad).all()


def test_two_images_have_no_angle() -> None:
    """Distances are all that is left where the student's two vectors are equal: 0 in place of 1 in 2 of 4 pairs."""
    assert relations(torch.ones(2, 4), features(1, 2, 5)).item() == pytest.approx(25 * 0.5 * 2 / 4, rel=1e-5)


@pytest.mark.parametrize("images", [2, 5])
def test_equal_vectors_have_relations_with_a_small_gradient(images: int) -> None:
    """Two equal vectors have no direction: F.normalize would multiply their gradient by 1e12."""
    student = torch.ones(images, 4)
    student[2:] = features(0, max(images - 2, 0), 4)
    student.requires_grad_()
    value = relations(student, features(1, images, 4))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad.abs().max() < 1000
