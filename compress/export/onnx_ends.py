"""Reads of a file with several ends which nodes an image needs up to each, and what the last end alone needs."""

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto

from compress.export.onnx_branches import branches_of, load_flat


def branch_depths(path: Path) -> dict[str, int]:
    """Returns in how many branches each node of a file is, by its name: those of the first end are in none."""

    def depths(graph: GraphProto, depth: int) -> dict[str, int]:
        found = {node.name: depth for node in graph.node}
        for node in graph.node:
            for branch in branches_of(node):
                found |= depths(branch, depth + 1)
        return found

    return depths(onnx.load(str(path)).graph, 0)


def last_end_alone(path: Path) -> ModelProto:
    """Returns the content of a file without all but its last end: the network that images would go through without."""
    model = load_flat(path)
    _keep_last_end(model)
    return model


def _keep_last_end(model: ModelProto) -> None:
    """Removes all that only earlier ends need, in place."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    name = graph.output[0].name
    while producers[name].op_type == "Where":
        name = producers[name].input[2]
    end, needed, kept = producers[name], {name}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    end.output[list(end.output).index(name)] = graph.output[0].name
    for field, wanted in (
        (graph.node, kept[::-1]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
        (graph.input, [value for value in graph.input if value.name in needed]),
        (graph.output, graph.output[:1]),
    ):
        content = list(wanted)
        del field[:]
        field.extend(content)
