"""The losses of features: what must hold for any features, then the papers' formulas in NumPy, in double precision."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.methods.distillation.feature_losses import (
    FEATURE_LOSSES,
    Projections,
    Review,
    attention_maps,
    hints,
    relations,
    review,
)
from compress.methods.distillation.losses import relative_error
from compress.utils.errors import UserError

STUDENT_SHAPES = [(3, 8, 8), (5, 4, 4), (6, 4, 4)]
TEACHER_SHAPES = [(4, 8, 8), (5, 4, 4), (8, 2, 2)]
MODULES = pytest.mark.parametrize("module", [Projections, Review])


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels(seed: int, shapes: list[tuple[int, ...]], images: int = 4) -> list[Tensor]:
    return [features(seed + level, images, *shape) for level, shape in enumerate(shapes)]


def double(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def pooled(maps: np.ndarray, size: int) -> np.ndarray:
    """Adaptive average pooling (N, C, H, W) to a size that divides H and W."""
    images, channels, height, width = maps.shape
    return maps.reshape(images, channels, size, height // size, size, width // size).mean((3, 5))


def huber(difference: np.ndarray) -> np.ndarray:
    absolute = np.abs(difference)
    return np.where(absolute < 1, difference**2 / 2, absolute - 0.5)


# ---- Attention maps ----------------------------------------------------------------------------------------------


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


# ---- Relations ---------------------------------------------------------------------------------------------------


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


# ---- Hints -------------------------------------------------------------------------------------------------------


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


# ---- Review ------------------------------------------------------------------------------------------------------


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


# ---- All ---------------------------------------------------------------------------------------------------------


@MODULES
def test_modules_return_the_teachers_shapes_shallow_to_deep(module: type[nn.Module]) -> None:
    outputs = module(STUDENT_SHAPES, TEACHER_SHAPES)(levels(0, STUDENT_SHAPES))
    assert [tuple(each.shape[1:]) for each in outputs] == TEACHER_SHAPES


@MODULES
def test_a_module_is_restored_from_its_state_to_the_bit(module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    first, second = module(STUDENT_SHAPES, TEACHER_SHAPES), module(STUDENT_SHAPES, TEACHER_SHAPES)
    student = levels(0, STUDENT_SHAPES)
    first(student)  # batch norm has statistics
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.eval()(student), second.eval()(student), strict=True))


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_a_gradient_reaches_the_student_and_the_module_and_never_the_teacher(name: str) -> None:
    torch.manual_seed(0)
    each = FEATURE_LOSSES[name]
    student = [level.requires_grad_() for level in levels(0, STUDENT_SHAPES)]
    teacher = [level.requires_grad_() for level in levels(9, TEACHER_SHAPES)]
    module = each.module(STUDENT_SHAPES, TEACHER_SHAPES) if each.module else nn.Identity()
    if name == "rkd":
        each.loss(student[-1].flatten(1), teacher[-1].flatten(1)).backward()
        student = student[-1:]
    else:
        each.loss(module(student), teacher).backward()
    assert all(level.grad.norm() > 0 for level in student)
    assert all(level.grad is None for level in teacher)
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["fitnet", "review"])
def test_modules_learn_features_that_are_a_function_of_the_students(name: str) -> None:
    torch.manual_seed(0)
    each = FEATURE_LOSSES[name]
    student = [features(0, 16, 3, 4, 4)]
    teacher = [torch.einsum("oc,nchw->nohw", features(1, 5, 3), student[0])]
    module = each.module([(3, 4, 4)], [(5, 4, 4)])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(each.loss(module(student), teacher))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("loss", [attention_maps, Projections])
def test_levels_of_two_kinds_are_refused(loss: object) -> None:
    maps, tokens = (3, 4, 4), (16, 3)
    with pytest.raises(UserError, match=r"level 1 .* \(3, 4, 4\) \(student\) and \(16, 3\) \(teacher\)"):
        loss([maps], [tokens]) if loss is Projections else loss(levels(0, [maps]), levels(1, [tokens]))


def test_the_default_weights() -> None:
    weights = {name: each.weight for name, each in FEATURE_LOSSES.items()}
    assert weights == {"at": 1000, "rkd": 1, "fitnet": 10, "review": 1}
