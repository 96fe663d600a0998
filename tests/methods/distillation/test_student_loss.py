"""The sum of all losses of a student: equal networks, the weights, and how labels are mixed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.data.dataset import Batch
from compress.methods.distillation.feature_terms import FeatureTerms, WithLearnedParts, learned_parts
from compress.methods.distillation.losses import distillation, record_outputs, relative_error, teacher_loss
from compress.methods.distillation.mixing import Mixing
from compress.methods.distillation.student_loss import LogitTerms, default_weight, student_loss
from compress.methods.distillation.teacher_logits import compute_logits

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def batch() -> Batch:
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, LABELS, torch.arange(6))


def network(seed: int, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 4))


def test_kd_alone_is_hintons_loss_to_the_bit() -> None:
    student, teacher = network(0), network(1).eval()
    value, _ = student_loss(compute_logits(teacher), LogitTerms(0.9, 4.0))(student, batch())
    plain, _ = teacher_loss(compute_logits(teacher), 4.0, 0.9)(student, batch())
    assert torch.equal(value, plain)
    assert default_weight("kd") == 1.0


@pytest.mark.parametrize("name", ["kd", "kd_standardized", "dkd", "dist", "mlkd"])
def test_each_loss_of_the_outputs_is_zero_for_equal_networks(name: str) -> None:
    teacher = network(0).eval()
    terms = LogitTerms(1.0, 2.0, {name: 3.0})
    value, _ = student_loss(compute_logits(teacher), terms)(copy.deepcopy(teacher), batch())
    assert value.item() == pytest.approx(0, abs=1e-3)


def test_the_weights_count() -> None:
    student, teacher = network(0), network(1).eval()

    def total(**weights: float) -> float:
        return student_loss(compute_logits(teacher), LogitTerms(0.5, 2.0, weights))(student, batch())[0].item()

    labels = 0.5 * F.cross_entropy(student(batch().images), LABELS).item()
    assert total() == pytest.approx(labels, rel=1e-6)
    parts = total(kd=1.0) - labels, total(dkd=1.0) - labels
    assert total(kd=2.0, dkd=3.0) == pytest.approx(labels + 2 * parts[0] + 3 * parts[1], rel=1e-5)


def test_hints_count_and_the_teacher_is_not_changed() -> None:
    student, teacher = network(0), network(1).eval()
    plain, _ = student_loss(compute_logits(teacher), LogitTerms(1.0, 1.0))(student, batch())
    with record_outputs(student, ["0"]) as own, record_outputs(teacher, ["0"]) as wanted:
        features = FeatureTerms({"fitnet": 10.0}, {"0": "0"}, own, wanted)
        value, output = student_loss(compute_logits(teacher), LogitTerms(1.0, 1.0), features)(student, batch())
        hint = relative_error(own["0"], wanted["0"])
    assert value.item() == pytest.approx(plain.item() + 10 * hint.item(), rel=1e-5)
    assert output.shape == (6, 4)
    value.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher[0]._forward_hooks


@pytest.mark.parametrize("name", ["fitnet", "review"])
def test_learned_parts_have_gradients_and_do_not_run_without_gradients(name: str) -> None:
    student, teacher = network(0, width=3), network(1).eval()
    with record_outputs(student, ["1"]) as own, record_outputs(teacher, ["1"]) as wanted:
        features = FeatureTerms({name: 1.0}, {"1": "1"}, own, wanted)
        trained = WithLearnedParts(student, learned_parts([name], [((3, 4, 4), (5, 4, 4))]), features)
        value, output = student_loss(compute_logits(teacher), LogitTerms(0.9, 2.0), features)(trained, batch())
        value.backward()
        assert all(parameter.grad is not None for parameter in trained.parameters())
        features.clear()
        with torch.no_grad():
            assert torch.equal(trained.eval()(batch().images), output)
        assert not features.learned


def test_parts_are_learned_beside_a_network_that_returns_more_in_train_mode() -> None:
    class Auxiliary(nn.Sequential):
        def forward(self, images: torch.Tensor) -> object:
            logits = super().forward(images)
            return (logits[None], logits) if self.training else logits

    student, teacher = Auxiliary(*network(0, width=3)), network(1).eval()
    with record_outputs(student, ["1"]) as own, record_outputs(teacher, ["1"]) as wanted:
        features = FeatureTerms({"fitnet": 1.0}, {"1": "1"}, own, wanted)
        trained = WithLearnedParts(student, learned_parts(["fitnet"], [((3, 4, 4), (5, 4, 4))]), features)
        loss = student_loss(compute_logits(teacher), LogitTerms(0.9, 2.0), features)
        for _ in range(2):
            value, logits = loss(trained, batch())
            assert logits.shape == (6, 4)
            value.backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_no_part_is_learned_where_shapes_are_equal() -> None:
    same, other = ((3, 4, 4), (3, 4, 4)), ((3, 4, 4), (5, 4, 4))
    assert len(learned_parts(["fitnet", "at", "rkd"], [same])) == 0
    assert list(learned_parts(["fitnet", "at", "review"], [same, other])) == ["fitnet", "review"]


def test_labels_are_mixed_as_the_images_are_and_the_teacher_answers_these() -> None:
    student, asked = network(0), []

    def teacher_fn(examples: Batch) -> torch.Tensor:
        asked.append(examples.images)
        return torch.zeros(6, 4)

    torch.manual_seed(5)
    value, logits = student_loss(teacher_fn, LogitTerms(0.0, 1.0), mixing=Mixing(mixup=1.0))(student, batch())
    torch.manual_seed(5)
    mixed = Mixing(mixup=1.0)(batch())
    assert torch.equal(asked[0], mixed.batch.images)
    assert torch.equal(logits, student(mixed.batch.images))
    wanted = mixed.share * F.cross_entropy(logits, LABELS) + (1 - mixed.share) * F.cross_entropy(
        logits, mixed.other_labels
    )
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert 0 < mixed.share < 1


def test_alpha_zero_is_the_labels_loss() -> None:
    student = network(0)
    value, logits = student_loss(compute_logits(network(1).eval()), LogitTerms(0.0, 4.0))(student, batch())
    assert torch.equal(value, distillation(logits, logits, LABELS, 4.0, 0.0))
