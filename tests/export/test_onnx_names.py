"""The nodes of an exported file, and of its profile, have the names of the author's layers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compress.evaluation.profiler import node_times
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import inspect_quantization
from compress.export.onnx_session import session_options
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from tests.methods.quantization.tiny_networks import Mobile, Residual, Shuffle, settled

SHAPE = (3, 16, 16)
MakeFile = Callable[[type[nn.Module], bool], Path]


class Twice(nn.Module):
    """One layer that is called twice, and products of activations in the network's own forward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.body(x)))
        return self.linear((x @ x).mean((1, 2)))


@pytest.fixture(scope="module")
def make_file(tmp_path_factory: pytest.TempPathFactory) -> MakeFile:
    """The file of a tiny network, float or int8."""
    made: dict[tuple[type[nn.Module], bool], Path] = {}

    def make(kind: type[nn.Module], int8: bool) -> Path:
        if (kind, int8) not in made:
            made[kind, int8] = tmp_path_factory.mktemp("named") / "model.onnx"
            _write(kind, int8, made[kind, int8])
        return made[kind, int8]

    return make


def _write(kind: type[nn.Module], int8: bool, path: Path) -> None:
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    network = settled(kind(), images)
    if int8:
        prepared = prepare(network, images[:1], weight_bits=7, qat=False)
        calibrate(prepared, [images])
        network = convert(prepared)
    export_onnx(network, path, SHAPE)


def named(path: Path) -> list[tuple[str, str]]:
    """(name, operator) of each node but those that quantize."""
    nodes = onnx.load(path).graph.node
    return [(node.name, node.op_type) for node in nodes if not node.op_type.endswith("Linear")]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_layer_has_its_own_name_and_any_other_node_its_modules(make_file: MakeFile, int8: bool) -> None:
    found = named(make_file(Residual, int8))
    wanted = [
        ("stem.0", "Conv"),
        ("stem.2/Relu", "Relu"),
        ("first.0.0", "Conv"),
        ("first.0.2/Relu", "Relu"),
        ("first.1.0", "Conv"),
        ("/Add", "Add"),
        ("linear", "Gemm"),
    ]
    assert [pair for pair in wanted if pair not in found] == []
    assert ("/GlobalAveragePool", "GlobalAveragePool") in found  # which a rewrite has put there
    assert (("stem.0/fourth_channel", "Pad") in found) == int8


def test_what_a_rewrite_makes_keeps_the_module(make_file: MakeFile) -> None:
    found = named(make_file(Mobile, True))
    assert ("squeeze.4/Add", "Add") in found  # hard sigmoid as a sum
    assert ("stem.2/Mul", "Mul") in found  # hard swish as a product
    assert ("squeeze.0/GlobalAveragePool", "GlobalAveragePool") in found


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("kind", [Residual, Mobile, Shuffle, Twice])
def test_names_are_unique_and_those_of_modules_or_stored_tensors(
    make_file: MakeFile, kind: type[nn.Module], int8: bool
) -> None:
    graph = onnx.load(make_file(kind, int8)).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    known = {name for name, _ in kind().named_modules()} | {tensor.name for tensor in graph.initializer} | {"image"}
    assert {name.partition("/")[0] for name in names} <= known


def test_a_layer_that_is_called_twice_is_told_from_its_second_call(make_file: MakeFile) -> None:
    found = named(make_file(Twice, False))
    assert [name for name, operator in found if operator == "Conv"] == ["body", "body/Conv"]
    assert ("/MatMul", "MatMul") in found


def test_a_product_of_activations_is_named_where_it_is_listed(make_file: MakeFile) -> None:
    layers = inspect_quantization(make_file(Twice, True))
    assert {(layer.name, layer.node) for layer in layers if layer.operator == "MatMul"} == {("/MatMul", "/MatMul")}
    assert {layer.name for layer in layers if layer.operator == "Conv"} == {"body"}


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("kind", [Residual, Mobile, Shuffle])
def test_the_profile_speaks_of_the_layers(make_file: MakeFile, kind: type[nn.Module], int8: bool) -> None:
    """Whatever the runtime makes of a node, fused or laid out anew, keeps the layer's name."""
    path = make_file(kind, int8)
    rows = node_times(str(path), [np.zeros((1, *SHAPE), np.float32)], session_options(1), runs=1)
    layers = {layer.name for layer in inspect_quantization(path)}
    found = {row["name"].partition("/")[0] for row in rows}
    assert found >= layers
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert not row["name"].startswith("node_")
        assert "_token_" not in row["name"]
        assert "_nchwc" not in row["name"]
