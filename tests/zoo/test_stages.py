"""Every network through every stage, on tiny data: pruned, distilled, quantized both ways, exported, run."""

import copy
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.config.search_settings import SearchArchitectureConfig
from compress.config.stage_settings import DistillConfig, PruneConfig, PruneTargetConfig, QuantizeConfig
from compress.evaluation.flops import count_cost
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import executed_operators, float_operators, inspect_quantization, require_quantized
from compress.launch.commands.models import int8_bytes
from compress.methods.restore import restore
from compress.models.artifact import Artifact, write_model
from compress.stages.distill import distill
from compress.stages.prune import prune
from compress.stages.quantize import quantize
from compress.stages.search_architecture import search_architecture
from compress.training.context import Context

from .conftest import NAMES, needs, networks

pytestmark = pytest.mark.e2e

STEP = {"epochs": 1, "lr": 1e-5}  # two steps teach nothing: they change next to nothing
PRUNE = PruneConfig(reconstruction_samples=24, **STEP)
QUANTIZE = {"calibration_samples": 24, "target": "x86_avx2"}

# What ONNX Runtime executes for one network of each family, besides what only moves values about or rounds them.
# Everything is int8 but what `float_of` names. A Pad gives the image its fourth channel.
EXECUTED = {
    "depthwise": {"QLinearConv": 13, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "mobilenet_v1": {"QLinearConv": 27, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    # 28 of the sums are the gates of hardswish and of squeeze-and-excitation, 6 are residual.
    "mobilenet_v3_small": {
        "QLinearConv": 52, "QLinearAdd": 34, "QLinearMul": 28, "QLinearGlobalAveragePool": 10, "QGemm": 2,
    },
    "squeezenet1_1": {"QLinearConv": 26, "NhwcMaxPool": 2, "QLinearConcat": 8},
    "shufflenet_v2_x0_5": {"QLinearConv": 56, "QLinearConcat": 16, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "mnasnet1_0": {"QLinearConv": 52, "QLinearAdd": 10, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "efficientnet_lite0": {"QLinearConv": 49, "QLinearAdd": 9, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    # Between integers lie each layer norm and each product of attention, of which the runtime fuses one with its scale.
    "mobilevit_shallow": {
        "QLinearConv": 35, "QLinearSigmoid": 28, "QLinearMul": 28, "QLinearAdd": 9, "QLinearConcat": 3, "QGemm": 13,
        "QLinearGlobalAveragePool": 1, "MatMul": 3, "FusedMatMul": 3,
    },
    "resnet18": {"QLinearConv": 20, "QLinearAdd": 8, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "vgg16_bn": {"QLinearConv": 13, "NhwcMaxPool": 3, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    # The other two pad the shortcuts.
    "resnet20": {"QLinearConv": 19, "QLinearAdd": 9, "QLinearGlobalAveragePool": 1, "QGemm": 1, "Pad": 3},
    # Six batch norms stand in front of their convolution.
    "wrn_16_2": {"QLinearConv": 22, "QLinearAdd": 6, "QLinearGlobalAveragePool": 1, "QGemm": 1},
}  # fmt: skip
MOVES = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Split", "Slice", "Shape", "Concat", "QuantizeLinear",
    "DequantizeLinear",
}  # fmt: skip
# The operators of the others are in these, too.
FAMILIES = [
    "depthwise", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilevit_shallow", "resnet20",
    "wrn_16_2",
]  # fmt: skip
OTHERS = [name for name in NAMES if name not in FAMILIES]


def float_of(name: str) -> set[str]:
    """The operators without weights for which there is no int8 kernel; SqueezeNet's pooling makes logits."""
    kinds = {"squeezenet": {"GlobalAveragePool"}, "mobilevit": {"LayerNormalization", "Softmax"}}
    return next((operators for kind, operators in kinds.items() if name.startswith(kind)), set())


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def export_and_check(name: str, made: Artifact, path: Path, images: Tensor) -> None:
    """The file runs, gives what the converted network gives, and is int8 but for what is known."""
    export_onnx(made.network, path, tuple(images.shape[1:]))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, wanted = (
        torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0]),
        logits_of(made.network, images),
    )
    # Here and there a value is rounded to the other side, which the untrained layers behind it make more of.
    assert (found - wanted).abs().mean() < 0.2 * (wanted - wanted.mean(0)).abs().mean()
    floats = {layer.name: layer.reason for layer in inspect_quantization(path) if not layer.quantized}
    require_quantized(path, tuple(floats))
    assert set(floats.values()) == ({"it multiplies two activations"} if name.startswith("mobilevit") else set())
    assert set(float_operators(path)) == float_of(name)


@pytest.mark.parametrize("name", [*networks(FAMILIES), *networks(OTHERS, long=True)])
def test_a_network_goes_through_every_stage(
    name: str, context: Context, settled: Callable[[str], Artifact], tmp_path: Path
) -> None:
    images = torch.cat([images for images, _ in context.data.test.batches()])
    pruned = prune(copy.deepcopy(settled(name)), PRUNE, context)
    assert all(0 <= share <= 1.01 for share in pruned.notes["unexplained_share"].values())
    assert pruned.notes["unexplained_share"]
    student = distill(pruned, DistillConfig(**STEP), context)
    write_model(student, tmp_path)
    restored = restore(tmp_path, context.device)
    assert torch.equal(logits_of(restored.network, images), logits_of(student.network, images))

    calibrated = quantize(copy.deepcopy(student), QuantizeConfig(mode="ptq", **QUANTIZE), context)
    errors = sorted(after for _, after in calibrated.notes["layer_errors"].values())
    assert errors[len(errors) // 2] < 0.3  # of an output's square: a wrong scale leaves nothing right
    trained = quantize(student, QuantizeConfig(**QUANTIZE, **STEP), context)
    export_and_check(name, trained, tmp_path / "model.onnx", images)
    if name in EXECUTED:
        executed = executed_operators(tmp_path / "model.onnx")
        found = {operator: count for operator, count in executed.items() if operator not in MOVES | float_of(name)}
        assert found == {"Pad": 1} | EXECUTED[name]
        assert executed["QuantizeLinear"] == 1 or "mobilevit" in name  # of the image alone


@pytest.mark.parametrize("name", networks(["mobilevit_shallow", "efficientnet_lite0", "resnet18"], long=True))
def test_a_sub_network_is_found(name: str, context: Context, settled: Callable[[str], Artifact]) -> None:
    """Also where convolution and attention take turns: narrower convolutions and fewer blocks."""
    given = settled(name)
    config = SearchArchitectureConfig(
        PruneTargetConfig(macs_share=0.7), trials=3, reconstruction_samples=24, fine_tune_epochs=0
    )
    _, before = count_cost(given.network, context.data.shape)
    made = search_architecture(given, config, context)
    _, after = count_cost(made.network, context.data.shape)
    assert 0.3 < after / before <= 0.7
    assert made.spec.widths


@pytest.mark.parametrize("name", networks(NAMES, long=True))
def test_a_calibrated_network_is_exported(
    name: str, context: Context, settled: Callable[[str], Artifact], tmp_path: Path
) -> None:
    images = torch.cat([images for images, _ in context.data.test.batches()])
    given = settled(name)
    made = quantize(given, QuantizeConfig(mode="ptq", **QUANTIZE), context)
    export_and_check(name, made, tmp_path / "model.onnx", images)
    # The table's figure leaves out the graph: 200 bytes a node, which is most where the weights are fewest.
    assert 1 < (tmp_path / "model.onnx").stat().st_size / int8_bytes(given.network) < 1.3


# Teacher and student of different families; each network is once the one and once the other.
PAIRS = list(zip(NAMES, NAMES[7:] + NAMES[:7], strict=True))


QUICK = ("depthwise", "squeezenet1_1", "resnet20")  # teachers whose pairs are not long


def marks(teacher: str, student: str) -> list[pytest.MarkDecorator]:
    return needs(teacher, student) + [pytest.mark.long] * (teacher not in QUICK)


@pytest.mark.parametrize(("teacher", "student"), [pytest.param(*pair, marks=marks(*pair)) for pair in PAIRS])
def test_a_network_learns_from_one_of_another_family(
    teacher: str, student: str, context: Context, settled: Callable[[str], Artifact]
) -> None:
    """The loss knows logits alone, so that these stand for all pairs."""
    given = settled(teacher)
    made = distill(given, DistillConfig(student=student, epochs=1, lr=1e-3), context)
    assert made.spec.architecture["model"] == student
    assert made.spec.widths == {}
    assert all(parameter.isfinite().all() for parameter in made.network.parameters())
    assert len(made.notes["history"]) == 1
