"""What an export is spared changes nothing in its file, and stays as it was for the exports of others."""

import gc
from contextlib import nullcontext
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter import _fx_passes, _registration

from compress.export import onnx as export
from compress.export import torchlib
from compress.export.torchlib import kept_registry, no_needless_decomposition, paused_garbage_collection
from tests.methods.quantization.tiny_networks import Residual, settled

SHAPE = (3, 16, 16)


def test_the_file_is_the_same_with_the_table_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = settled(Residual(), torch.randn(8, *SHAPE))
    for name in ("first", "kept"):
        export.export_onnx(network, tmp_path / name, SHAPE)
    monkeypatch.setattr(export, "kept_registry", nullcontext)
    export.export_onnx(network, tmp_path / "built", SHAPE)
    assert len({(tmp_path / name).read_bytes() for name in ("first", "kept", "built")}) == 1


def test_the_table_is_built_once_and_only_inside() -> None:
    original = vars(_registration.ONNXRegistry)["from_torchlib"]
    with kept_registry():
        first, second = (_registration.ONNXRegistry().from_torchlib(opset_version=18) for _ in range(2))
    assert first is second
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is original
    assert _registration.ONNXRegistry.from_torchlib(opset_version=18) is not first


def test_a_torch_without_that_table_exports_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchlib, "_REGISTRY", None)
    with kept_registry():
        assert _registration.ONNXRegistry.from_torchlib(opset_version=18).functions


class PooledToQuarters(nn.Module):
    """The exporter has no translation of adaptive pooling: torch has to decompose it."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.mark.parametrize(("network", "decomposed"), [(Residual(), 0), (PooledToQuarters(), 1)])
def test_a_program_is_traced_again_only_where_an_operator_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module, decomposed: int
) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, *SHAPE)
    network = settled(network, images)
    calls, decompose = [], _fx_passes.decompose_with_registry
    counted = lambda *arguments: (calls.append(1), decompose(*arguments))[1]
    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counted)
    export.export_onnx(network, tmp_path / "quick", SHAPE)
    assert len(calls) == decomposed
    monkeypatch.setattr(export, "no_needless_decomposition", nullcontext)
    export.export_onnx(network, tmp_path / "whole", SHAPE)
    outputs = []
    for name in ("quick", "whole"):
        session = onnxruntime.InferenceSession(tmp_path / name)
        outputs.append(session.run(None, {"image": images.numpy()})[0])
    assert (outputs[0] == outputs[1]).all()
    kinds = [sorted(node.op_type for node in onnx.load(tmp_path / name).graph.node) for name in ("quick", "whole")]
    assert kinds[0] == kinds[1]


def test_other_exports_decompose_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _fx_passes.decompose_with_registry
    with no_needless_decomposition():
        assert _fx_passes.decompose_with_registry is not original
    assert _fx_passes.decompose_with_registry is original
    monkeypatch.setattr(torchlib, "_known_operators", None)  # a torch without that function
    with no_needless_decomposition():
        assert _fx_passes.decompose_with_registry is original


def test_garbage_is_collected_again_behind_it() -> None:
    with paused_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_garbage_collection():
            pass
        assert not gc.isenabled()  # as it was found
    finally:
        gc.enable()
