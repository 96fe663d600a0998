"""What an export is spared changes nothing in its file, and stays as it was for the exports of others."""

import gc
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter import _registration

from compress.export import onnx as export
from compress.export import torchlib
from compress.export.torchlib import kept_registry, paused_garbage_collection
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
