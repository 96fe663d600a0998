"""The exported file: same numbers as torch, self-contained, reproducible, nothing of the machine in it."""

import copy

import onnx
import pytest
import torch
from torch import nn

from compress.export import onnx as export
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import executed_operators, inspect_quantization, require_quantized
from compress.methods.quantization.pt2e import calibrate, convert, prepare

from .conftest import NETWORKS, SHAPE
from .tiny_networks import Mobile, Padded, Residual, settled

KINDS = [(name, qat) for name in NETWORKS for qat in (False, True)]


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_file_equals_converted_network(quantized, run_onnx, images, name, qat):
    made = quantized(name, qat)
    with torch.no_grad():
        expected = made.converted(images)
    # The runtime rounds sums of integers, torch sums of floats: now and then one value lands a quantum aside,
    # and the last layers spread it. A wrong scale anywhere moves the mean.
    difference = (run_onnx(made.path, images) - expected).abs()
    assert difference.mean() < 0.01 * expected.std()
    assert difference.max() < 0.25 * expected.std()


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_int8_stays_near_float(quantized, run_onnx, images, name, qat):
    made = quantized(name, qat)
    with torch.no_grad():
        expected = made.network(images)
    assert (run_onnx(made.path, images) - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize(("name", "qat"), KINDS)
def test_every_layer_is_int8_in_file_and_runtime(quantized, name, qat):
    path = quantized(name, qat).path
    require_quantized(path)
    assert all(-64 <= layer.weight_min <= layer.weight_max <= 64 for layer in inspect_quantization(path))
    assert max(layer.weight_max for layer in inspect_quantization(path)) > 55  # the seven bits are used


# One QuantizeLinear for the image, and one Pad for its fourth channel; what else is float is listed with its reason.
EXECUTED = {
    "residual": {
        "QuantizeLinear": 1,
        "QLinearConv": 5,
        "QLinearAdd": 2,
        "Slice": 1,
        "Pad": 2,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
    },
    "mobile": {
        "QuantizeLinear": 1,
        "Pad": 1,
        "QLinearConv": 6,
        "QLinearGlobalAveragePool": 2,
        "QLinearSigmoid": 1,
        "QLinearMul": 3,
        "QLinearAdd": 3,
        "QGemm": 1,
    },
    # Logits are not quantized, so the pooling that makes them is float.
    "shuffle": {
        "QuantizeLinear": 1,
        "Pad": 1,
        "QLinearConv": 4,
        "NhwcMaxPool": 1,
        "QLinearConcat": 2,
        "Split": 2,
        "DequantizeLinear": 1,
        "GlobalAveragePool": 1,
    },
}
SHAPING = {"Transpose", "Reshape", "Flatten", "Squeeze"}


@pytest.mark.parametrize("name", NETWORKS)
def test_executed_operators(quantized, name):
    executed = executed_operators(quantized(name).path)
    assert {operator: n for operator, n in executed.items() if operator not in SHAPING} == EXECUTED[name]


def test_biases_and_weights_are_stored_as_integers(quantized):
    graph = onnx.load(quantized("residual").path).graph
    types = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4]
    assert types == [onnx.TensorProto.INT8] * 5
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sources = {output: node.input[0] for node in graph.node for output in node.output}
    biases = [stored[sources[node.input[2]]] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert biases == [onnx.TensorProto.INT32] * 6


def test_one_file_with_free_batch_and_no_trace_of_the_machine(quantized, run_onnx, images):
    path = quantized("residual").path
    assert list(path.parent.iterdir()) == [path]
    assert run_onnx(path, images[:1]).shape == (1, 10)
    assert not [
        mark for mark in (b".py", b"/home", b"/tmp", b"site-packages", b"stack_trace") if mark in path.read_bytes()
    ]
    model = onnx.load(path)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_same_module_gives_same_bytes_and_no_noise(quantized, tmp_path, capfd):
    made = quantized("residual")
    export_onnx(made.converted, tmp_path / "again.onnx", SHAPE)
    assert (tmp_path / "again.onnx").read_bytes() == made.path.read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("build", [Residual, Mobile])
def test_float_network_exports_with_batch_norm_folded(quantized, run_onnx, images, tmp_path, build):
    network = quantized(build.__name__.lower()).network
    path = tmp_path / "float.onnx"
    export_onnx(network, path, SHAPE)
    with torch.no_grad():
        assert torch.allclose(run_onnx(path, images), network(images), atol=1e-4)
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in onnx.load(path).graph.node}


def test_padding_is_the_convolutions_own(run_onnx, images, tmp_path, monkeypatch):
    """The same logits bit for bit; what two convolutions read stays a node."""
    prepared = prepare(settled(Padded(), images), images[:1], weight_bits=7, qat=False)
    calibrate(prepared, images.split(32))
    converted = convert(prepared)
    folded, padded = tmp_path / "folded.onnx", tmp_path / "padded.onnx"
    export_onnx(converted, folded, SHAPE)
    monkeypatch.setattr("compress.export.onnx.fold_padding", lambda model: None)
    export_onnx(converted, padded, SHAPE)
    counts = [executed_operators(path)["Pad"] for path in (folded, padded)]
    assert counts == [2, 4]  # the fourth channel's among the two; behind padding there is none
    assert torch.equal(run_onnx(folded, images), run_onnx(padded, images))
    require_quantized(folded)


def test_memory_layout_leaves_no_trace(quantized, tmp_path):
    """The exporter turns pooling behind channels_last into a gather of strided elements."""
    network = quantized("mobile").network
    paths = []
    for layout in (torch.contiguous_format, torch.channels_last):
        paths.append(tmp_path / f"{len(paths)}.onnx")
        export_onnx(copy.deepcopy(network).to(memory_format=layout), paths[-1], SHAPE)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "Gather" not in executed_operators(paths[1])


def test_float_layer_is_named(quantized, tmp_path):
    path = tmp_path / "float.onnx"
    export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2)), path, SHAPE)
    layers = inspect_quantization(path)
    assert [(layer.operator, layer.quantized) for layer in layers] == [("Conv", False), ("Gemm", False)]
    with pytest.raises(ValueError, match="its weight is not stored as int8"):
        require_quantized(path)
    require_quantized(path, float_layers=tuple(layer.name for layer in layers))


def test_an_image_of_three_channels_is_read_as_one_of_four(quantized, run_onnx, images, tmp_path, monkeypatch):
    made = quantized("residual")
    monkeypatch.setattr(export, "add_fourth_channel", lambda model: None)
    export_onnx(made.converted, tmp_path / "three.onnx", SHAPE)
    assert torch.equal(run_onnx(made.path, images), run_onnx(tmp_path / "three.onnx", images))
    widths = {}
    for path in (made.path, tmp_path / "three.onnx"):
        graph = onnx.load(path).graph
        (stem,) = (tensor for tensor in graph.initializer if tensor.name == "stem.0.weight")
        widths[path] = stem.dims[1]
    assert list(widths.values()) == [4, 3]
