"""Which layers stay float: the fewest that a greedy search finds, and an honest word where none suffice."""

from dataclasses import dataclass, field

import pytest
import torch

from compress.methods.quantization.mixed_precision import WeightedLayer, weighted_layers
from compress.methods.quantization.sensitivity import MixedPrecisionFiles, Quality, control_accuracy
from compress.tasks import CLASSIFICATION
from compress.utils.errors import UserError

from .conftest import SHAPE


@dataclass
class Invented:
    """Files whose quality is a sum over their float layers: the search alone is under test."""

    divergence: dict[str, float]  # what each layer costs as int8
    points: dict[str, float]  # what each layer wins in float
    together: dict[frozenset, float] = field(default_factory=dict)  # sets with a top-1 of their own
    images: int = 100

    @property
    def layers(self) -> dict[str, WeightedLayer]:
        return {name: WeightedLayer(name, "conv", torch.zeros(4, 2), None, 7) for name in self.divergence}

    def quality(self, floats) -> Quality:
        top1 = self.together.get(frozenset(floats), 80 + sum(self.points[name] for name in floats))
        return Quality(top1, sum(self.divergence.values()) - sum(self.divergence[name] for name in floats))


def kept(table: dict) -> list[str]:
    return [row["layer"] for row in table["layers"] if row["kept_float"]]


@pytest.mark.parametrize(
    ("drop", "names"),
    [(20.0, []), (19.9, ["b"]), (15.0, ["b"]), (14.5, ["a", "b"]), (14.0, ["a", "b"]), (13.0, ["a", "b", "c"])],
)
def test_the_fewest_of_the_layers_that_cost_most(drop, names):
    files = Invented({"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 1.0, "b": 5.0, "c": 1.0})
    table = control_accuracy(files, 100.0, drop)
    assert kept(table) == names
    assert table["chosen_top1_percent"] >= 100 - drop
    assert (table["int8_top1_percent"], table["int8_kl_nats"]) == (80, 6)
    assert [row["kl_nats"] for row in table["layers"]] == [2, 3, 1]
    assert {(row["weights"], row["macs"], row["operator"]) for row in table["layers"]} == {(8, 7, "conv")}


def test_layers_that_can_be_spared_go_back_to_int8():
    """`a` costs most by divergence and wins nothing: the search takes it first and gives it back."""
    files = Invented({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 9.0})
    assert kept(control_accuracy(files, 89.0, 0.0)) == ["c"]


def test_layers_that_only_help_together_stay_together():
    both = {frozenset("ab"): 90.0, frozenset("abc"): 90.0}
    files = Invented({"a": 3.0, "b": 1.0, "c": 2.0}, {"a": 0.0, "b": 0.0, "c": 0.0}, both)
    assert kept(control_accuracy(files, 90.0, 0.0)) == ["a", "b"]


def test_a_drop_out_of_reach_is_refused_with_the_best():
    files = Invented({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 4.0, "b": 3.5, "c": -1.0})
    with pytest.raises(
        UserError, match=r"max_drop_points=0\.5, .* 2 of 3 layers in float, loses 2\.50 points.* set it"
    ):
        control_accuracy(files, 90.0, 0.5)


def test_exactly_the_allowed_drop_is_allowed():
    assert 90.01 - 0.1 > 89.91  # as floats
    files = Invented({"a": 1.0}, {"a": 0.0}, {frozenset(): 89.91})
    assert kept(control_accuracy(files, 90.01, 0.1)) == []


def test_quality_is_that_of_the_file_on_all_images(quantized, run_onnx, images, tmp_path):
    made = quantized("residual")
    labels = torch.arange(len(images)) % 10
    with torch.no_grad():
        wanted = made.network(images)
    files = MixedPrecisionFiles(
        made.prepared, made.prepared, SHAPE, lambda: zip(images.split(24), labels.split(24), strict=True), wanted
    )
    assert list(files.layers) == [layer.name for layer in weighted_layers(made.prepared)]
    found = run_onnx(made.path, images)
    p, q = wanted.double().softmax(1), found.double().softmax(1)
    quality = files.quality([])
    assert quality.kl_nats == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-6)
    assert quality.score_percent == CLASSIFICATION.score(found, labels)
    assert files.quality(files.layers).kl_nats < 1e-9 < quality.kl_nats
    assert files.quality(files.layers).score_percent == CLASSIFICATION.score(wanted, labels)
