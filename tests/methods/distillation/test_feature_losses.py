"""What must hold for every loss of layers and every module that one learns, for any features."""

import pytest
import torch
from torch import nn

from compress.methods.distillation.feature_losses import FEATURE_LOSSES, Projections, Review, attention_maps
from compress.utils.errors import UserError
from tests.methods.distillation.features import STUDENT_SHAPES, TEACHER_SHAPES, features, levels

MODULES = pytest.mark.parametrize("module", [Projections, Review])


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
