"""Takes off the softmax or sigmoid that a user's network ends in: everything here works on logits."""

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
    """`network`, or a copy of it that returns logits where it ended in a module of softmax, log_softmax or sigmoid.

    Cross-entropy of probabilities trains badly, and softened ones are no softened logits; log_softmax alone may stay,
    as both ignore a constant added to all logits. Raises UserError where the outputs are probabilities that no module
    at the end makes. `network`, called `name`, takes images (N, C, H, W) of `shape`.
    """
    images = torch.randn(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    training = network.training
    try:
        with torch.no_grad():
            outputs = network.eval()(images)
            kind = _kind(outputs)
            last = _last_call(network, images) if kind else None
    except Exception:  # a network that does not run, or cannot be traced, is refused with its cause later
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
    mend = f"return what goes into the {kind} there; weights stay as they are"
    raise UserError(
        f"{name}, which returns probabilities: its last operator is {function}{f' ({place})' if place else ''}",
        "a network that returns logits",
        mend if function == kind else "return the logits that they are made from, or the logarithm of the outputs",
    )


def _kind(outputs: object) -> str | None:
    """What the outputs (N, K) look like: probabilities, their logarithms, or shares of 1; None for plain logits."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2 or not outputs.isfinite().all():
        return None
    ones = torch.ones(len(outputs))
    if bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), ones, atol=_TOLERANCE):
        return "softmax"
    if bool((outputs <= 0).all()) and torch.allclose(outputs.exp().sum(1), ones, atol=_TOLERANCE):
        return "log_softmax"
    return "sigmoid" if bool(((outputs >= 0) & (outputs <= 1)).all()) else None


def _last_call(network: nn.Module, images: Tensor) -> Node:
    """The call that computes the outputs of the traced network, before those that only move values."""
    program = torch.export.export(network, (images,))
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    node = output.all_input_nodes[0]
    while _operator(node) in _MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0].strip("_")


def _module_path(node: Node, network: nn.Module) -> str | None:
    """The name of the activation module that makes `node` and no other; None where a function does."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1].removeprefix("L['self']").strip(".") if stack else ""
    if not path or not isinstance(network.get_submodule(path), _MODULES):
        return None
    module = network.get_submodule(path)
    names = [name for name, other in network.named_modules(remove_duplicate=False) if other is module]
    return path if len(names) == 1 else None


def _stripped(network: nn.Module, path: str, images: Tensor, outputs: Tensor, kind: str) -> nn.Module | None:
    """A copy without the module at `path`; None unless its outputs are those whose activation `outputs` are."""
    logits = copy.deepcopy(network)
    logits.set_submodule(path, nn.Identity())
    training = logits.training
    with torch.no_grad():
        found = _FUNCTIONS[kind](logits.eval()(images))
    logits.train(training)
    return logits if torch.allclose(found, outputs, atol=_TOLERANCE) else None
