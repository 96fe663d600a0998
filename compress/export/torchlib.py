"""Saves torch.onnx.export work that it repeats in every call: two thirds of the time of a small network's export."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.onnx._internal.exporter import _decomp, _fx_passes, _registration

# A private class of torch: where a later version lacks it, each export builds its own table again.
_REGISTRY = getattr(_registration, "ONNXRegistry", None)
_from_torchlib = cache(getattr(_REGISTRY, "from_torchlib", lambda: None))
_known_operators = getattr(_decomp, "get_onnx_implemented_overloads", None)


@contextmanager
def kept_registry() -> Iterator[None]:
    """Makes torch.onnx.export reuse the table of operators that it built before for the same opset.

    For each new table it parses the source of 500 operators, 0.4 s. The option `custom_translation_table` would change
    the kept table: do not use it inside.
    """
    registry = _REGISTRY
    original = None if registry is None else vars(registry).get("from_torchlib")
    if registry is None or original is None:
        yield
        return
    registry.from_torchlib = staticmethod(_from_torchlib)
    try:
        yield
    finally:
        registry.from_torchlib = original


@contextmanager
def no_needless_decomposition() -> Iterator[None]:
    """While the context lasts, torch.onnx.export traces a program again only if an operator has to be decomposed.

    Tracing takes half of the time of an export. A program keeps its operators in it if the exporter has a translation
    for each of them and none writes into its inputs.
    """
    decompose = getattr(_fx_passes, "decompose_with_registry", None)
    if decompose is None or _known_operators is None:
        yield
        return
    _fx_passes.decompose_with_registry = partial(_decompose_where_needed, decompose, _known_operators)
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = decompose


def _decompose_where_needed(
    decompose: Callable, known_operators: Callable, program: ExportedProgram, registry: Any
) -> ExportedProgram:
    known = set(known_operators(registry))
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    if all(_is_written_as_it_is(node, known) for graph in graphs for node in graph.nodes if node.op == "call_function"):
        return program
    return decompose(program, registry)


def _is_written_as_it_is(node: Node, known: set[Any]) -> bool:
    operator = node.target
    return isinstance(operator, OpOverload) and operator in known and not operator._schema.is_mutable


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Collects no cycles while the context lasts.

    An export makes millions of objects, and each full collection scans all that torch has imported, 0.3 s.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
