"""The ExecuTorch program: torch's logits, by XNNPACK's kernels, int8 for a quantized stage; what is left is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.export import Source
from compress.export import executorch as target
from compress.models.graph.aten_patterns import DEQUANTIZE_CHANNELS, aten
from compress.models.graph.capture import capture

from .conftest import SHAPE, MakeSource, need_extra, onnx_logits

need_extra("executorch")

SLICE = "XNNPACK takes no aten::slice_copy.Tensor like this; ExecuTorch's portable kernel runs it"


@pytest.fixture(scope="module")
def exported(source: MakeSource) -> dict[tuple[str, bool], tuple[Source, list[dict[str, str]]]]:
    """Each source with what its export left out: an export takes seconds."""
    kinds = [("plain", False), ("plain", True), ("residual", True)]
    return {kind: (source(*kind), target.export(source(*kind))) for kind in kinds}


def logits(source: Source, images: Tensor, threads: int = 1) -> Tensor:
    return torch.from_numpy(target.open_runner(source.folder / "model.pte", threads)(images.numpy())[0])


def test_float_logits_are_torchs(exported, images: Tensor) -> None:
    made, _ = exported["plain", False]
    with torch.no_grad():
        assert torch.allclose(logits(made, images), made.network(images), atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_int8_logits_are_near_the_float_ones(exported, images: Tensor, name: str) -> None:
    """And no nearer than int8 can be: the weights were rounded."""
    made, _ = exported[name, True]
    with torch.no_grad():
        wanted = made.network(images)
    found = logits(made, images)
    assert 1e-4 * wanted.std() < (found - wanted).abs().mean() < 0.05 * wanted.std()
    assert (found.argmax(1) == onnx_logits(made, images).argmax(1)).float().mean() >= 0.95


def test_xnnpack_takes_every_operator_of_convolutions_and_linear_layers(exported) -> None:
    assert exported["plain", False][1] == exported["plain", True][1] == []


def test_what_xnnpack_does_not_take_is_named(exported) -> None:
    """It has no strided slice, which option-A shortcuts are: one along each of height and width."""
    assert [row["reason"] for row in exported["residual", True][1]] == [SLICE] * 2


def test_int8_weights_are_stored_as_integers(exported) -> None:
    """A byte each: the largest weight is found in the file as XNNPACK rounds it, a scale a channel."""
    made, _ = exported["residual", True]
    weight = max((p for p in made.network.parameters() if p.dim() == 4), key=torch.numel).detach()
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8).permute(0, 2, 3, 1).contiguous()  # XNNPACK's order
    assert stored.numpy().tobytes() in (made.folder / "model.pte").read_bytes()


def test_the_same_network_gives_the_same_bytes_without_a_trace_of_the_machine(exported, tmp_path: Path) -> None:
    made, _ = exported["plain", False]
    target.export(replace(made, folder=tmp_path))
    content = (tmp_path / "model.pte").read_bytes()
    assert content == (made.folder / "model.pte").read_bytes()
    assert not [mark for mark in (b".py", b"/tmp", b"/home", b"site-packages", b"stack_trace") if mark in content]


def test_the_threads_are_those_asked_for_and_change_no_logit(exported, images: Tensor, capfd) -> None:
    from executorch.extension.pybindings import portable_lib

    made, _ = exported["plain", True]
    one = logits(made, images, threads=1)
    assert portable_lib._threadpool_get_thread_count() == 1
    assert torch.equal(logits(made, images, threads=2), one)
    assert portable_lib._threadpool_get_thread_count() == 2
    assert capfd.readouterr() == ("", "")


def test_an_int8_layer_that_xnnpack_takes_in_part_is_refused() -> None:
    graph = torch.fx.Graph()
    node = graph.call_function(DEQUANTIZE_CHANNELS, (graph.placeholder("weight"),))
    with pytest.raises(ValueError, match=f"int8 layers behind {node.name}; expected"):
        target._require_whole_layers([node])


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_spatial_mean_becomes_a_pooling_of_the_same_value(images: Tensor, keepdim: bool) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((-1, -2), keepdim)

    module = capture(Mean(), torch.zeros(1, *SHAPE))
    target.pool_spatial_means(module)
    assert aten.mean.dim not in {node.target for node in module.graph.nodes}
    assert torch.allclose(module(images), images.mean((2, 3), keepdim), atol=1e-6)
