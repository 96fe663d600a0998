"""Layers kept in float: edited file, exported file and torch network are one, and all other layers stay int8."""

import copy
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compress.export import onnx as export
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import executed_operators, inspect_quantization, require_quantized
from compress.methods.quantization.mixed_precision import exclude_layers, tensors_left_float, weighted_layers
from compress.methods.quantization.mixed_precision_onnx import exclude_layers_onnx
from compress.methods.quantization.pt2e import calibrate, convert, freeze_batch_norm, prepare

from .conftest import NETWORKS, SHAPE
from .test_pt2e import train
from .tiny_networks import settled

KINDS = [(name, qat) for name in NETWORKS for qat in (False, True)]
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm")


def halves(names: list[str]) -> list[list[str]]:
    """A seeded half of the layers, and the other half."""
    half = random.Random(0).sample(names, len(names) // 2)
    return [half, [name for name in names if name not in half]]


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_edited_file_is_the_exported_one(quantized, run_onnx, images, tmp_path, name, qat):
    made = quantized(name, qat)
    layers = {layer.name: layer for layer in weighted_layers(made.prepared)}
    exported, edited = tmp_path / "exported.onnx", tmp_path / "edited.onnx"
    for names in halves(list(layers))[:1] if qat else halves(list(layers)):
        converted = convert(exclude_layers(copy.deepcopy(made.prepared), names))
        export_onnx(converted, exported, SHAPE)
        edited.write_bytes(exclude_layers_onnx(made.path.read_bytes(), [layers[name] for name in names]))
        assert torch.equal(run_onnx(edited, images), run_onnx(exported, images)), names
        assert executed_operators(edited) == executed_operators(exported), names
        with torch.no_grad():
            wanted = converted(images)
        assert (run_onnx(exported, images) - wanted).abs().mean() < 0.01 * wanted.std(), names
        assert_float(exported, names)


def assert_float(path, names: list[str]) -> None:
    """The layers `names` have float kernels in the runtime, and no other layer has."""
    require_quantized(path, tuple(names))
    executed = executed_operators(path)
    assert sum(executed[operator] for operator in FLOAT_KERNELS) == len(names), names
    assert {layer.name for layer in inspect_quantization(path) if not layer.quantized} == set(names)


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_all_layers_in_float_are_the_float_network(quantized, run_onnx, images, tmp_path, name, qat):
    made = quantized(name, qat)
    layers = weighted_layers(made.prepared)
    path = tmp_path / "edited.onnx"
    path.write_bytes(exclude_layers_onnx(made.path.read_bytes(), layers))
    with torch.no_grad():
        wanted = made.network(images)
        kept = convert(exclude_layers(copy.deepcopy(made.prepared), [layer.name for layer in layers]))
        assert torch.allclose(kept(images), wanted, atol=1e-5)
    assert torch.allclose(run_onnx(path, images), wanted, atol=1e-5)
    assert "QuantizeLinear" not in executed_operators(path)


def test_the_runtime_would_quantize_float_weights_by_itself(quantized, images, tmp_path, monkeypatch):
    """Why each float layer between int8 tensors reads them through a scale for each channel."""
    converted = convert(exclude_layers(copy.deepcopy(quantized("residual").prepared), ["first.0.0"]))
    monkeypatch.setattr(export, "protect_float_layers", lambda model: None)
    export_onnx(converted, tmp_path / "model.onnx", SHAPE)
    with pytest.raises(ValueError, match=r"of whose 6 layers .* executes 6 as int8 though first\.0\.0 have float"):
        require_quantized(tmp_path / "model.onnx", ("first.0.0",))


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_saved_state_converts_to_the_same_network(quantized, images, tmp_path, name, qat):
    prepared = copy.deepcopy(quantized(name, qat).prepared)
    names = halves([layer.name for layer in weighted_layers(prepared)])[0]
    if qat:
        train(prepared, images, 1)
        freeze_batch_norm(prepared)
    whole = set(prepared.state_dict())
    exclude_layers(prepared, names)
    assert set(prepared.state_dict()) < whole  # what stays keeps its name
    save_file(prepared.state_dict(), tmp_path / "state.safetensors")
    other = settled(NETWORKS[name](), images.flip(0), seed=7)
    reloaded = exclude_layers(prepare(other, images[:1], weight_bits=7, qat=qat), names)
    reloaded.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    with torch.no_grad():
        assert torch.equal(convert(reloaded)(images), convert(prepared)(images))


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_no_layer_in_float_changes_nothing(quantized, name, qat):
    made = quantized(name, qat)
    kept = exclude_layers(copy.deepcopy(made.prepared), [])
    assert kept.state_dict().keys() == made.prepared.state_dict().keys()
    assert str(kept.graph) == str(made.prepared.graph)


def test_a_layer_that_is_not_there_is_refused(quantized):
    made = quantized("residual")
    with pytest.raises(ValueError, match=r"received layers stem to keep in float; expected some of stem\.0, first"):
        exclude_layers(copy.deepcopy(made.prepared), ["stem", "linear"])
    other = weighted_layers(quantized("mobile").prepared)
    with pytest.raises(ValueError, match=r"received layers depthwise\.0, .*; expected some of stem\.0, first"):
        exclude_layers_onnx(made.path.read_bytes(), other)


class Twice(nn.Module):
    """A layer that runs twice, with one channel, and a convolution that makes the logits."""

    def __init__(self):
        super().__init__()
        self.narrow, self.again, self.last = nn.Conv2d(3, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 10, 10)

    def forward(self, x):
        return self.last(self.again(self.again(self.narrow(x).relu()).relu()))


@pytest.mark.parametrize("names", [["again"], ["narrow", "last"]])
def test_shared_layers_single_channels_and_logits_of_a_convolution(run_onnx, images, tmp_path, names):
    torch.manual_seed(0)
    prepared = prepare(Twice().eval(), images[:1], weight_bits=7, qat=False)
    calibrate(prepared, [images])
    int8, exported, edited = (tmp_path / f"{name}.onnx" for name in ("int8", "exported", "edited"))
    export_onnx(convert(prepared), int8, SHAPE)
    layers = weighted_layers(prepared)
    sides = {"narrow": (27, 14 * 14), "again": (9, 12 * 12 + 10 * 10), "last": (100, 10)}
    assert {layer.name: layer.macs for layer in layers} == {name: a * b for name, (a, b) in sides.items()}
    edited.write_bytes(exclude_layers_onnx(int8.read_bytes(), [layer for layer in layers if layer.name in names]))
    export_onnx(convert(exclude_layers(prepared, names)), exported, SHAPE)
    assert torch.equal(run_onnx(edited, images), run_onnx(exported, images))
    require_quantized(exported, tuple(names))
    executed = executed_operators(exported)
    assert sum(executed[operator] for operator in FLOAT_KERNELS) == len(names) + ("again" in names)


def test_a_tensor_stays_quantized_for_an_int8_reader_and_a_sum_leaves_int8_with_one_input():
    """Two convolutions, their sum, and a convolution that reads it: a block of a ResNet."""
    layers = {"first": "first", "second": "second", "after": "after"}
    makers = {"image": None, "a": "first", "b": "second", "sum": "add", "end": "after"}
    inputs = {"first": ["image"], "second": ["a"], "add": ["b", "a"], "after": ["sum"]}
    for names, dropped in {
        (): set(),
        ("first",): {"image"},  # `a` is read by an int8 layer
        ("second",): {"b"},  # so the sum is float, but its int8 reader wants it quantized
        ("after",): {"end"},
        ("first", "second"): {"image", "a", "b"},
        ("second", "after"): {"b", "sum", "end"},
    }.items():
        assert tensors_left_float(makers, inputs, layers, names) == dropped, names
