"""Reads from a node of an ONNX graph what may be absent: an optional input, the node before it, a constant."""

import numpy as np
import onnx_ir as ir


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Returns the node that computes `value`, where its operator is `operator`; None for any other or no node."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Returns the values of an initializer; None for a tensor that is computed, and for an input that is absent."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def required_input(node: ir.Node, index: int) -> ir.Value:
    """Returns the input at `index`. Raises ValueError where the node has none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ValueError(f"received a node {node.name}, {node.op_type}, without input {index}; expected one")
    return value


def required_constant(node: ir.Node, index: int) -> np.ndarray:
    """Returns the values of the initializer at `index` of the inputs. Raises ValueError where it is none."""
    values = constant(required_input(node, index))
    if values is None:
        raise ValueError(
            f"received a node {node.name}, {node.op_type}, that computes input {index}; expected constants"
        )
    return values


def required_shape(value: ir.Value) -> ir.Shape:
    """Returns the shape of a tensor. Raises ValueError where the file does not state it."""
    if value.shape is None:
        raise ValueError(f"received a tensor {value.name} without a shape; expected the shape that the exporter writes")
    return value.shape
