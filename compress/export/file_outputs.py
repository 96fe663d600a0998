"""The outputs of an exported file: their names, and how they come from the network's output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen


def only_output(arrays: Sequence[np.ndarray]) -> Tensor:
    """Returns the output of a file that has one."""
    (output,) = arrays
    return torch.from_numpy(np.asarray(output))


@dataclass(frozen=True)
class FileOutputs:
    """The names of a file's outputs, what computes them from the network's, and what turns them into its form again.

    Without `compute` the file returns the network's output.
    """

    names: tuple[str, ...]
    compute: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    join: Callable[[Sequence[np.ndarray]], Tensor] = only_output


LOGITS = FileOutputs(("logits",))


def append_computation(module: GraphModule, compute: Callable[[Tensor], tuple[Tensor, ...]], example: Tensor) -> None:
    """Lets `module` return what `compute` makes of its output, in place; `example` is (N, C, H, W).

    Operators are added to the graph, so that the layers keep their names, which a module around it would change.
    """
    graph = module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    (value,) = output.all_input_nodes
    with torch.no_grad():
        added = make_fx(compute)(module(example))
    (placeholder,) = (node for node in added.graph.nodes if node.op == "placeholder")
    with graph.inserting_before(output):
        results = graph.graph_copy(added.graph, {placeholder: value})
    output.args = (tuple(results),)
    graph.set_codegen(CodeGen())  # an exported module's own would pack its former single output
    module.recompile()
