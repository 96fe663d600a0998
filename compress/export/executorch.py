"""Exports to ExecuTorch: a `.pte` file for phones and boards, computed and quantized by XNNPACK."""

import contextlib
import io
import operator
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.fx import GraphModule, Node

from compress.export import TARGETS, Runner, Source
from compress.export.file_outputs import append_computation
from compress.models.graph.aten_patterns import (
    CONVOLUTIONS,
    DEQUANTIZE_CHANNELS,
    LINEARS,
    argument,
    aten,
    is_call,
    is_spatial_mean,
)
from compress.models.graph.capture import capture
from compress.utils.files import write_bytes

_NO_KERNEL = "XNNPACK takes no {} like this; ExecuTorch's portable kernel runs it"
_FLOAT = "XNNPACK's quantizer leaves it in float"


def export(source: Source) -> list[dict[str, str]]:
    """Writes model.pte for one image a call, as ExecuTorch plans its memory ahead; equal networks give equal bytes.

    The quantizer is XNNPACK's: activations and weights signed 8 bits, weights symmetric with a scale a channel,
    logits quantized too. This int8 differs from that of model.onnx, and its ranges come from `source.calibration`.
    """
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        image = torch.zeros(1, *source.shape)
        module = capture(source.network, image)
        pool_spatial_means(module)
        floats = []
        if source.calibration is not None:
            module = _quantize(module, source.calibration)
            floats = [node.name for node in module.graph.nodes if _is_float_layer(node)]
        if source.outputs.compute is not None:
            append_computation(module, source.outputs.compute, image)
        program = to_edge_transform_and_lower(torch.export.export(module, (image,)), partitioner=[XnnpackPartitioner()])
        outside = [node for node in program.exported_program().graph.nodes if _runs_outside_xnnpack(node)]
        _require_whole_layers(outside)
        write_bytes(source.folder / TARGETS["executorch"][0], program.to_executorch().buffer)
    return [{"layer": name, "reason": _FLOAT} for name in floats] + [
        {"layer": node.name, "reason": _NO_KERNEL.format(node.target.name())} for node in outside
    ]


def input_shape(shape: tuple[int, int, int]) -> list[int | str]:
    """Returns the shape that model.pte takes: one image."""
    return [1, *shape]


def open_runner(path: Path, threads: int) -> Runner:
    """Returns a runner of the program at `path` on `threads` threads; it computes one image after the other."""
    with _quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)  # there is no other way; programs with the old pool break
        forward = Runtime.get().load_program(path).load_method("forward")

    def run(images: np.ndarray) -> list[np.ndarray]:
        # Copied, because every call writes its results to the same memory.
        found = [
            [output.numpy().copy() for output in forward.execute([image])]
            for image in torch.from_numpy(images).split(1)
        ]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    return run


def pool_spatial_means(module: GraphModule) -> None:
    """Replaces each mean over height and width by pooling to 1x1, the form that XNNPACK's quantizer knows, in place."""
    for node in list(module.graph.nodes):
        if not is_call(node, {aten.mean.dim}) or not is_spatial_mean(node):
            continue
        value = node.args[0].meta["val"].mean((2, 3), keepdim=True)
        with module.graph.inserting_before(node):
            result = module.graph.call_function(aten.adaptive_avg_pool2d.default, (node.args[0], [1, 1]))
            result.meta = {"val": value}  # without it the quantizer does not know that the tensor is float
            if not argument(node, "keepdim"):
                result = module.graph.call_function(aten.flatten.using_ints, (result, 1))
                result.meta = {"val": value.flatten(1)}
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
    module.recompile()


def _quantize(module: GraphModule, calibration: list[torch.Tensor]) -> GraphModule:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(
        module, XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    )
    with torch.no_grad():
        for images in calibration:
            prepared(images)
    return convert_pt2e(prepared)


def _is_float_layer(node: Node) -> bool:
    return is_call(node, CONVOLUTIONS | LINEARS) and not is_call(node.args[1], {DEQUANTIZE_CHANNELS})


def _runs_outside_xnnpack(node: Node) -> bool:
    """Returns whether a node computes outside XNNPACK; the calls of its parts, and reading their results, do not."""
    plumbing = (torch.ops.higher_order.executorch_call_delegate, operator.getitem)
    return node.op == "call_function" and node.target not in plumbing


def _require_whole_layers(outside: list[Node]) -> None:
    """Raises ValueError where XNNPACK takes only a part of an int8 layer: ExecuTorch 1.5 then computes wrong logits."""
    weights = [node.name for node in outside if node.target.name() == DEQUANTIZE_CHANNELS.name()]
    if weights:
        raise ValueError(
            f"received a network of which XNNPACK does not take the int8 layers behind {', '.join(weights)}; expected "
            "convolutions and linear layers that its quantizer knows; leave executorch out of export.targets"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides ExecuTorch's warnings of its experimental parts, and what it prints about the CPU."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
