"""What a stage does with the network that it is given, apart from the files around it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig, PruneConfig, QuantizeConfig, TeacherConfig
from compress.data import load_data
from compress.methods.distillation.losses import record_outputs, relative_error
from compress.methods.restore import restore
from compress.models.artifact import Artifact, write_model
from compress.stages.distill import distill
from compress.stages.prune import prune
from compress.stages.quantize import quantize
from compress.stages.teacher import teacher
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter
from compress.training.validation import validate
from compress.utils.errors import UserError
from tests.stages.taught import taught


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    yield from taught(tiny_config, tmp_path)


@pytest.fixture
def student(context: Context) -> Artifact:
    """The teacher with half of its inner filters gone and nothing done about it."""
    return prune(copy.deepcopy(context.teacher), PruneConfig(round_to=1, reconstruction_samples=0, epochs=0), context)


def outputs(network: torch.nn.Module, layer: str, context: Context) -> torch.Tensor:
    """What `layer` gives on the validation images."""
    with torch.no_grad(), record_outputs(network.eval(), [layer]) as kept:
        network(torch.cat([images for images, _ in context.data.val.batches()]))
    return kept[layer]


def distance(student: Artifact, layer: str, context: Context) -> float:
    wanted = outputs(context.teacher.network, layer, context)
    return relative_error(outputs(student.network, layer, context), wanted).item()


def test_a_distilled_student_comes_nearer_to_the_teacher(student: Artifact, context: Context) -> None:
    before = distance(student, "linear", context)
    distill(student, DistillConfig(epochs=6, alpha=1.0, temperature=1.0, lr=0.03), context)
    assert distance(student, "linear", context) < 0.5 * before


def test_hints_bring_the_inner_layers_nearer_too(student: Artifact, context: Context) -> None:
    settings = {"epochs": 4, "alpha": 1.0, "lr": 0.01, "temperature": 1.0}
    plain = copy.deepcopy(student)
    distill(plain, DistillConfig(**settings), context)
    distill(student, DistillConfig(hint_layers=["layer1", "layer2", "layer3"], **settings), context)
    assert distance(student, "layer2", context) < 0.8 * distance(plain, "layer2", context)


def test_hints_between_unequal_shapes_are_refused(context: Context) -> None:
    with pytest.raises(UserError, match=r"distill\.hint_layers with features; expected modules"):
        distill(
            copy.deepcopy(context.teacher),
            DistillConfig(student="mobilenet_v3_small", hint_layers=["features"]),
            context,
        )


def test_a_layer_that_lost_filters_is_compared_by_a_projection(context: Context, tiny_config: Config) -> None:
    tiny_config.prune.epochs = 0
    pruned = prune(copy.deepcopy(context.teacher), tiny_config.prune, context)
    names = list(pruned.network.state_dict())
    made = distill(pruned, DistillConfig(hint_layers=["layer1.0.conv1"], epochs=1), context)
    assert list(made.tensors()) == names  # the projection is not among them


def test_pruning_records_what_is_left(context: Context, tiny_config: Config) -> None:
    tiny_config.prune.epochs = 0
    pruned = prune(copy.deepcopy(context.teacher), tiny_config.prune, context)
    assert pruned.spec.widths["layer1.0.conv1"] == [8, 16, 1]
    assert "conv1" not in pruned.spec.widths
    (record,) = pruned.spec.pruning
    assert record["settings"]["ratio"] == 0.5
    assert len(record["kept_filters"]["layer3.0.conv1"]) == 32
    assert set(pruned.notes["unexplained_share"]) == {f"layer{k}.0.conv2" for k in (1, 2, 3)}


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_the_quantized_network_is_near_the_float_one(context: Context, tiny_config: Config, mode: str) -> None:
    tiny_config.quantize.mode, tiny_config.quantize.epochs = mode, 0
    given = copy.deepcopy(context.teacher)
    images = torch.cat([images for images, _ in context.data.val.batches()])
    with torch.no_grad():
        wanted = given.network(images)
        found = quantize(given, tiny_config.quantize, context).network(images)
    assert (found - wanted).abs().max() < 0.1 * (wanted.max() - wanted.min())


@pytest.mark.parametrize(("pixels", "stem"), [(8, "small"), (96, "imagenet")])
def test_the_stem_fits_the_image(tiny_config: Config, tmp_path: Path, pixels: int, stem: str) -> None:
    tiny_config.data.image_size = pixels
    data = load_data(tiny_config.data, 0)
    with TensorBoardWriter(tmp_path) as curves:
        context = Context(data, None, tiny_config.train, torch.device("cpu"), 0, curves)
        built = teacher(None, TeacherConfig(model="mobilenet_v3_small", epochs=0), context)
    assert built.spec.architecture["stem"] == stem


@pytest.mark.parametrize(("target", "bits"), [("x86_avx2", 7), ("x86_vnni", 8), ("arm", 8)])
def test_the_target_decides_the_bits(context: Context, tiny_config: Config, target: str, bits: int) -> None:
    tiny_config.quantize.mode, tiny_config.quantize.target = "ptq", target
    made = quantize(copy.deepcopy(context.teacher), tiny_config.quantize, context)
    assert (made.spec.quantization["target"], made.spec.quantization["weight_bits"]) == (target, bits)
    largest = max(value.abs().max().item() for value in made.network.state_dict().values() if value.dtype == torch.int8)
    assert largest == {7: 64, 8: 127}[bits]


CORRECTED = QuantizeConfig(
    mode="ptq", calibration_samples=48, equalize=True, rounding="adaround", rounding_steps=20, correct_bias=True
)


def test_all_corrections_at_once_are_recorded_and_restored(context: Context, tmp_path: Path) -> None:
    images = torch.cat([images for images, _ in context.data.val.batches()])
    wanted = context.teacher.network(images).detach()
    made = quantize(copy.deepcopy(context.teacher), CORRECTED, context)
    inner = [(f"layer{k}.0.conv1", f"layer{k}.0.conv2") for k in (1, 2, 3)]
    assert made.notes["equalization"] == {"pairs": inner}
    layers = {layer for pair in inner for layer in pair} | {"conv1", "linear"}
    assert set(made.notes["layer_errors"]) == layers
    assert {row["layer"] for row in made.left_out} == layers - {first for first, _ in inner}
    before, after = (sum(errors[at] for errors in made.notes["layer_errors"].values()) for at in (0, 1))
    assert after < 0.8 * before

    write_model(made, tmp_path)
    with torch.no_grad():
        found = made.network(images)
        assert (found - wanted).abs().max() < 0.1 * (wanted.max() - wanted.min())
        assert torch.equal(restore(tmp_path, torch.device("cpu")).network(images), found)


def test_equalization_that_finds_nothing_says_so(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    given = copy.deepcopy(context.teacher)
    given.network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Sigmoid(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    made = quantize(given, QuantizeConfig(mode="ptq", equalize=True), context)
    assert "no two layers were found" in caplog.text
    assert made.notes["equalization"]["pairs"] == []
    assert made.left_out == [
        {"layer": "0", "reason": "not equalized: sigmoid reads it, which does not pass a scale on"}
    ]


def spoil(network: torch.nn.Module) -> None:
    """Give the last layer huge weights for a feature that is always 0: no loss in float, all lost as int8."""
    with torch.no_grad():
        network.layer3[0].bn2.weight[0] = network.layer3[0].bn2.bias[0] = 0
        network.linear.weight[:, 0] = 1000


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_the_layer_that_int8_spoils_stays_float(context: Context, tiny_config: Config, mode: str) -> None:
    given, config = copy.deepcopy(context.teacher), tiny_config.quantize
    spoil(given.network)
    config.mode, config.epochs = mode, 0
    before = validate(given.network, context.data.val, context.device).score_percent
    damaged = quantize(copy.deepcopy(given), config, context).network
    spoilt = validate(damaged, context.data.val, context.device).score_percent
    assert spoilt < before - 20
    config.max_drop_points = 5.0
    made = quantize(given, config, replace(context, data=replace(context.data, test=None)))  # chosen without the test
    assert made.spec.quantization["float_layers"] == ["linear"]
    after = validate(made.network, context.data.val, context.device).score_percent
    assert after >= before - 5
    assert made.sensitivity["float_top1_percent"] == before
    assert made.sensitivity["int8_top1_percent"] == pytest.approx(spoilt, abs=5)
    costs = {row["layer"]: row["kl_nats"] for row in made.sensitivity["layers"]}
    assert max(costs, key=costs.get) == "linear"
    assert sorted(costs.values())[-2] < 0.01 * costs["linear"]
    (row,) = made.left_out
    assert row["layer"] == "linear"
    assert "kept in float for accuracy" in row["reason"]


def test_a_drop_that_int8_keeps_leaves_no_layer_float(context: Context, tiny_config: Config) -> None:
    tiny_config.quantize.mode = "ptq"
    plain = quantize(copy.deepcopy(context.teacher), tiny_config.quantize, context)
    tiny_config.quantize.max_drop_points = 100.0
    made = quantize(copy.deepcopy(context.teacher), tiny_config.quantize, context)
    assert plain.sensitivity is None
    assert plain.spec == made.spec
    assert made.left_out == []
    assert all(torch.equal(made.state[name], value) for name, value in plain.state.items())
    assert len(made.sensitivity["layers"]) == 8  # measured all the same
    assert made.sensitivity["images"] == len(context.data.val)
