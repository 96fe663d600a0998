"""Turns selections between results of a flat ONNX graph into branches, so that a file skips what an image needs not.

A selection is `Where(confident, early logits, later logits)`, as `torch.where` writes it, with a condition for each
image (N, 1), `GreaterOrEqual(confidence, threshold)`. Those of a graph form a chain that ends in its first output.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compress.utils.exit_names import EXIT_INDEX, THRESHOLDS


@dataclass(frozen=True)
class Selection:
    """A choice by image between the logits of an exit and those of what follows."""

    where: NodeProto
    compare: NodeProto  # the confidence of each image (N, 1) with the exit's threshold

    @property
    def confident(self) -> str:
        return self.where.input[0]

    @property
    def early(self) -> str:
        return self.where.input[1]


def find_selections(graph: GraphProto) -> list[Selection]:
    """Returns the selections from which the first output comes, the first exit first."""
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    found: list[Selection] = []
    name = graph.output[0].name
    while (where := producers.get(name)) is not None and where.op_type == "Where":
        compare = producers.get(where.input[0])
        if compare is None or compare.op_type != "GreaterOrEqual" or compare.input[1] not in constants:
            break
        found.append(Selection(where, compare))
        name = where.input[2]
    return found


def branch_on_selections(model: ModelProto) -> None:
    """Puts all that only the later logits of a selection need into the else branch of an `If`, in place.

    The condition is that every image of the batch leaves at this exit or left before, so that a single image skips
    what it does not need, and any batch gets the logits of the flat graph. The thresholds become an input,
    `thresholds`, whose default are the present ones, and the output `exit_index` is added. It has to be the last
    rewrite, because the others do not look into branches. Raises ValueError for a graph without selections.
    """
    graph = model.graph
    selections = find_selections(graph)
    if not selections:
        raise ValueError(f"received a graph that ends in {graph.node[-1].op_type}; expected a selection of logits")
    parts = _parts(graph, selections)
    for at, gather in enumerate(_read_thresholds(graph, selections)):
        parts[at].insert(0, gather)
    numbers = [_constant(graph, f"exit_{at}", [[at]]) for at in range(len(selections) + 1)]
    nodes, index = parts[-1], numbers[-1]
    for at in reversed(range(len(selections))):
        nodes = [*parts[at], *_leave_or_go_on(graph, selections, at, nodes, (numbers[at], index))]
        index = nodes[-1].output[1]
    axis = _constant(graph, "exits/axis", [1])
    nodes.append(helper.make_node("Squeeze", [index, axis], [EXIT_INDEX], "exits/Squeeze"))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info(EXIT_INDEX, TensorProto.INT64, ["N"]))
    _move_into_branches(graph)
    onnx.checker.check_model(model)


def flatten(model: ModelProto) -> None:
    """Replaces each `If` by the nodes of its else branch, in place: all exits and the end are computed.

    It undoes `branch_on_selections` but for the input and the output that this added.
    """
    graph = model.graph
    while branched := [node for node in graph.node if node.op_type == "If"]:
        for node in branched:
            body = _branch(node, "else_branch")
            names = dict(zip((value.name for value in body.output), node.output, strict=True))
            for inner in body.node:
                inner.output[:] = [names.get(name, name) for name in inner.output]
            at = list(graph.node).index(node)
            nodes = [*graph.node[:at], *body.node, *graph.node[at + 1 :]]
            del graph.node[:]
            graph.node.extend(nodes)
            graph.initializer.extend(body.initializer)
            graph.value_info.extend(body.value_info)


def load_flat(path: Path) -> ModelProto:
    """Returns the content of a file, without branches."""
    model = onnx.load(str(path))
    flatten(model)
    return model


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yields the nodes of a graph and of all branches in it."""
    for node in graph.node:
        yield node
        for branch in branches_of(node):
            yield from all_nodes(branch)


def _parts(graph: GraphProto, selections: list[Selection]) -> list[list[NodeProto]]:
    """Returns the nodes that each exit needs beside those of the exits before it, and last those of the end alone."""
    nodes = list(graph.node)
    levels = _levels(nodes, selections)
    producers = {name: at for at, node in enumerate(nodes) for name in node.output}
    maps = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 4}
    parts: list[list[NodeProto]] = [[] for _ in range(len(selections) + 1)]
    sent: list[list[NodeProto]] = [[] for _ in parts]  # what a part prepares for a later one
    received: set[str] = set()
    for at, node in enumerate(nodes):
        if any(node is selection.where for selection in selections):
            continue
        level = levels[at]
        for number, name in enumerate(node.input):
            source = nodes[producers[name]] if name in producers else None
            if source is None or source.op_type != "DequantizeLinear" or levels[producers[name]] == level:
                continue
            node.input[number] = own = f"{name}/exit_{level}"
            if own not in received:
                received.add(own)
                before, behind = _cross_border(source, own, level, source.input[0] in maps)
                sent[levels[producers[name]]] += before
                parts[level] += behind
        parts[level].append(node)
    return [[*own, *more] for own, more in zip(parts, sent, strict=True)]


def _levels(nodes: list[NodeProto], selections: list[Selection]) -> list[int]:
    """Returns for each node the first exit that needs it, or the number of exits."""
    producers = {name: at for at, node in enumerate(nodes) for name in node.output}
    levels = [len(selections)] * len(nodes)
    for level, selection in reversed(list(enumerate(selections))):
        waiting = [selection.confident, selection.early]
        while waiting:
            at = producers.get(waiting.pop())
            if at is not None and levels[at] != level:
                levels[at] = level
                waiting += nodes[at].input
    return levels


def _cross_border(source: NodeProto, name: str, level: int, is_map: bool) -> tuple[list[NodeProto], list[NodeProto]]:
    """Returns nodes on both sides of a border, behind which `source`, a DequantizeLinear, is repeated as `name`.

    The runtime fuses an int8 layer only with what dequantizes its input in the same graph. A map crosses with its
    channels last, the order of the int8 kernels: behind a border that it crosses with channels first, the runtime turns
    it before and after each sum.
    """
    integers, place = source.input[0], f"{source.name.rpartition('/')[0]}/exit_{level}"
    before, behind = [], []
    if is_map:
        last, first = f"{name}/channels_last", f"{name}/channels_first"
        before.append(helper.make_node("Transpose", [integers], [last], f"{place}/Transpose", perm=[0, 2, 3, 1]))
        behind.append(helper.make_node("Transpose", [last], [first], f"{place}/Transpose_1", perm=[0, 3, 1, 2]))
        integers = first
    copied = helper.make_node("DequantizeLinear", [integers, *source.input[1:]], [name], f"{place}/DequantizeLinear")
    copied.attribute.extend(source.attribute)
    return before, [*behind, copied]


def _read_thresholds(graph: GraphProto, selections: list[Selection]) -> list[NodeProto]:
    """Makes the thresholds an input of the file; returns a node for each selection that reads its own."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values = np.array([constants[selection.compare.input[1]].item() for selection in selections], np.float32)
    graph.initializer.append(numpy_helper.from_array(values, THRESHOLDS))
    graph.input.append(helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, [len(values)]))
    nodes = []
    for at, selection in enumerate(selections):
        place, own = _constant(graph, f"exit_{at}/place", at), f"exit_{at}/threshold"
        nodes.append(helper.make_node("Gather", [THRESHOLDS, place], [own], f"exit_{at}/Gather", axis=0))
        selection.compare.input[1] = own
    return nodes


def _leave_or_go_on(
    graph: GraphProto, selections: list[Selection], at: int, rest: list[NodeProto], index: tuple[str, str]
) -> list[NodeProto]:
    """Returns the nodes of exit `at` that end in its `If`, with the logits and the index (N, 1) of each image.

    `rest` are the nodes that only the later ends need; `index` names the own number and the index of the later ends.
    """
    where, confident, name = selections[at].where, selections[at].confident, f"exit_{at}"
    leaves = f"{name}/leaves" if at else confident
    nodes = []
    if at:
        before = f"exit_{at - 1}/leaves" if at > 1 else selections[0].confident
        nodes.append(helper.make_node("Or", [before, confident], [leaves], f"{name}/Or"))
    nodes += [
        helper.make_node("Cast", [leaves], [f"{name}/as_number"], f"{name}/Cast", to=TensorProto.INT32),
        helper.make_node("ReduceMin", [f"{name}/as_number"], [f"{name}/least"], f"{name}/ReduceMin", keepdims=0),
        helper.make_node("Cast", [f"{name}/least"], [f"{name}/all_leave"], f"{name}/Cast_1", to=TensorProto.BOOL),
    ]
    own, later = index
    then_branch = [
        helper.make_node("Identity", [where.input[1]], [f"{name}/then/logits"], f"{name}/then/Identity"),
        helper.make_node("Where", [confident, own, own], [f"{name}/then/index"], f"{name}/then/Where"),
    ]
    else_branch = [
        *rest,
        helper.make_node("Where", where.input, [f"{name}/else/logits"], f"{name}/else/Where"),
        helper.make_node("Where", [confident, own, later], [f"{name}/else/index"], f"{name}/else/Where_1"),
    ]
    branches = {
        kind: helper.make_graph(content, f"{name}/{kind}", [], _results(graph, f"{name}/{kind}"))
        for kind, content in (("then", then_branch), ("else", else_branch))
    }
    results = [where.output[0], f"{name}/index"]
    fork = helper.make_node(
        "If", [f"{name}/all_leave"], results, f"{name}/If", then_branch=branches["then"], else_branch=branches["else"]
    )
    return [*nodes, fork]


def _results(graph: GraphProto, name: str) -> list[onnx.ValueInfoProto]:
    """Returns the descriptions of a branch's logits and index."""
    logits = onnx.ValueInfoProto()
    logits.CopyFrom(graph.output[0])
    logits.name = f"{name}/logits"
    return [logits, helper.make_tensor_value_info(f"{name}/index", TensorProto.INT64, ["N", 1])]


def _constant(graph: GraphProto, name: str, value: object) -> str:
    """Adds an int64 initializer; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    return name


def _move_into_branches(graph: GraphProto) -> None:
    """Moves each initializer into the branch that alone reads it, and descriptions of values to their nodes, in place.

    The runtime prepares the weights of a layer for its kernel where both are in one graph.
    """
    own = {name for node in graph.node for name in node.input} | {value.name for value in graph.input}
    own |= {name for node in graph.node for name in node.output}
    branches = [branch for node in graph.node for branch in branches_of(node)]
    names = [{name for node in all_nodes(branch) for name in (*node.input, *node.output)} for branch in branches]
    for field in (graph.initializer, graph.value_info):
        kept = []
        for entry in field:
            readers = [branch for branch, used in zip(branches, names, strict=True) if entry.name in used]
            if entry.name in own or len(readers) > 1:
                kept.append(entry)
            elif readers:
                (readers[0].initializer if field is graph.initializer else readers[0].value_info).append(entry)
        del field[:]
        field.extend(kept)
    for branch in branches:
        _move_into_branches(branch)


def branches_of(node: NodeProto) -> list[GraphProto]:
    """Returns the branches of an `If`; an empty list for any other node."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def _branch(node: NodeProto, name: str) -> GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)
