"""Writes a network, float or int8, as one self-contained ONNX file."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn
from torch.fx import GraphModule

from compress.export.file_outputs import LOGITS, FileOutputs, append_computation
from compress.export.onnx_branches import branch_on_selections
from compress.export.onnx_names import name_by_layer, name_uniquely
from compress.export.onnx_rewrites import (
    add_fourth_channel,
    fold_padding,
    merge_slices,
    pad_integers,
    protect_float_layers,
    strip_descriptions,
    use_global_average_pool,
)
from compress.export.torchlib import kept_registry, no_needless_decomposition, paused_garbage_collection
from compress.models.graph.batch_norm import lift_modules, lower_conv_batch_norm
from compress.models.graph.capture import capture
from compress.models.graph.normal_forms import global_pools_as_means

OPSET = 18  # the exporter's native one; has every operator that ONNX Runtime fuses


def export_onnx(
    module: nn.Module,
    path: Path,
    input_shape: tuple[int, int, int],
    outputs: FileOutputs = LOGITS,
    branches: bool = False,
) -> None:
    """Writes `module`, a float network or what `convert` returned, to `path` with its weights inside.

    `input_shape` is (C, H, W). The file's input is `image`, float32 (N, C, H, W) with N free. Batch norm is folded, and
    nodes have the names of the layers. The same module gives the same bytes; no path or stack trace of this machine
    goes in. With `branches` the file of a network with exits skips what an image does not need, and takes `thresholds`.
    """
    example = torch.zeros(2, *input_shape)
    # After weights in channels_last the exporter writes average pooling as a gather of strided elements.
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    if not isinstance(module, GraphModule):
        module = capture(module, example)
        lift_modules(module)
        lower_conv_batch_norm(module)
    global_pools_as_means(module)
    if outputs.compute is not None:
        append_computation(module, outputs.compute, example)
    module.eval()  # a dropout in training mode would go into the file: ONNX Runtime passes over it, others refuse it
    with torch.no_grad(), _silence(), kept_registry(), no_needless_decomposition(), paused_garbage_collection():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs.names),
            dynamic_shapes=({0: "N"},),
            verbose=False,
        )
    model = program.model
    name_by_layer(model)
    use_global_average_pool(model)
    merge_slices(model)
    pad_integers(model)
    fold_padding(model)
    add_fourth_channel(model)
    protect_float_layers(model)
    RemoveUnusedNodesPass()(model)
    name_uniquely(model)
    strip_descriptions(model)
    content = ir.to_proto(model)
    if branches:
        branch_on_selections(content)
    Path(path).write_bytes(content.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides what the exporter prints and warns about its own progress and deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
