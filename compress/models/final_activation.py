"""Removes the softmax or sigmoid at the end of a user's network: everything here works on logits."""

import copy
import logging

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from compress.utils.errors import UserError
from compress.utils.user_code import innermost_line

log = logging.getLogger("compress")

_IMAGES = 4
_TOLERANCE = 1e-4

_FUNCTIONS = {"softmax": lambda x: F.softmax(x, 1), "log_softmax": lambda x: F.log_softmax(x, 1), "sigmoid": F.sigmoid}
_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
_MOVES = {"flatten", "view", "reshape", "squeeze", "dropout", "clone", "contiguous"}


def without_final_activation(network: nn.Module, name: str, shape: tuple[int, int, int]) -> nn.Module:
    """Returns `network`, or a copy that returns logits where it ended in a softmax, log_softmax or sigmoid module.

    Cross-entropy of probabilities trains badly, and softened probabilities are no softened logits. Only log_softmax may
    stay, because both ignore a constant added to all logits. `shape` is (C, H, W); messages name the network `name`.
    Raises UserError where the outputs are probabilities that no module at the end computes.
    """
    images = torch.randn(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    training = network.training
    try:
        with torch.no_grad():
            outputs = network.eval()(images)
            kind = _kind(outputs)
            last = _last_call(network, images) if kind else None
    except Exception:  # a later check refuses a network that does not run or cannot be traced, with the cause
        return network
    finally:
        network.train(training)
    if kind is None or last is None:
        return network
    function = _operator(last)
    if kind == "sigmoid" and function != "sigmoid":
        return network
    path = _module_path(last, network) if function == kind else None
    logits = None if path is None else _stripped(network, path, images, outputs, kind)
    if logits is not None:
        log.warning(
            "%s ends in %s, a %s: it is taken off, as training and distillation need logits; model.onnx returns logits",
            name, path, type(network.get_submodule(path)).__name__,
        )  # fmt: skip
        return logits
    if kind == "log_softmax":
        return network
    place = innermost_line(last.meta.get("stack_trace"))
    fix = f"return what goes into the {kind} there; weights stay as they are"
    raise UserError(
        f"{name}, which returns probabilities: its last operator is {function}{f' ({place})' if place else ''}",
        "a network that returns logits",
        fix if function == kind else "return the logits that they are made from, or the logarithm of the outputs",
    )


def _kind(outputs: object) -> str | None:
    """Classifies the outputs (N, K): probabilities, their logarithms, or values in 0..1; None for plain logits."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2 or not outputs.isfinite().all():
        return None
    ones = torch.ones(len(outputs))
    if bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), ones, atol=_TOLERANCE):
        return "softmax"
    if bool((outputs <= 0).all()) and torch.allclose(outputs.exp().sum(1), ones, atol=_TOLERANCE):
        return "log_softmax"
    return "sigmoid" if bool(((outputs >= 0) & (outputs <= 1)).all()) else None


def _last_call(network: nn.Module, images: Tensor) -> Node:
    """Returns the last call of the traced network that computes values and does not only move them."""
    program = torch.export.export(network, (images,))
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    node = output.all_input_nodes[0]
    while _operator(node) in _MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0].strip("_")


def _module_path(node: Node, network: nn.Module) -> str | None:
    """Returns the name of the activation module that computes `node`; None for a function or a shared module."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1].removeprefix("L['self']").strip(".") if stack else ""
    if not path or not isinstance(network.get_submodule(path), _MODULES):
        return None
    module = network.get_submodule(path)
    names = [name for name, other in network.named_modules(remove_duplicate=False) if other is module]
    return path if len(names) == 1 else None


def _stripped(network: nn.Module, path: str, images: Tensor, outputs: Tensor, kind: str) -> nn.Module | None:
    """Returns a copy without the module at `path`; None unless the activation of its outputs equals `outputs`."""
    logits = copy.deepcopy(network)
    logits.set_submodule(path, nn.Identity())
    training = logits.training
    with torch.no_grad():
        activated = _FUNCTIONS[kind](logits.eval()(images))
    logits.train(training)
    return logits if torch.allclose(activated, outputs, atol=_TOLERANCE) else None
