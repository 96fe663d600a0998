"""Turns what a library raises in a dry run into an error that names the cause in the network, and how to fix it."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from compress.models.graph.aten_patterns import line_of
from compress.utils.errors import UserError
from compress.utils.user_code import causes, first_line, user_line

T = TypeVar("T")

_VALUES = ("data-dependent", "GuardOnDataDependentSymNode", "DataDependentOutputException", "_local_scalar_dense")
_LEAVES_TORCH = (".numpy()", "tolist", "Cannot access data pointer", "FakeTensor to NumPy")
_ONE_BATCH_SIZE = ("specialized it to be a constant", "ConstraintViolationError", "Constraints violated")
_OPERATOR = re.compile(r"(?:OpOverload\(op='|torch\.ops\.)([\w.]+)")

# step of the dry run -> what to do where the cause is unknown
_LEAVE_OUT = {
    "pruned": "leave prune out of the stages, e.g. stages=[teacher,distill,quantize]",
    "searched": "leave search_architecture out of the stages, e.g. stages=[teacher,prune,distill,quantize]",
    "factorized": "leave factorize out of the stages, e.g. stages=[teacher,distill,quantize]",
    "given exits": "leave early_exit out of the stages, e.g. stages=[teacher,prune,distill,quantize]",
    "given several widths": "leave dynamic_width out of the stages, e.g. stages=[teacher,prune,distill,quantize]",
    "quantized": "leave quantize out of the stages, e.g. stages=[teacher,prune,distill]",
}


def to_dry_run_error(
    error: Exception, model: str, participle: str, network: nn.Module, shape: tuple[int, int, int]
) -> UserError:
    """Returns why the network called `model` cannot be `participle`: trained, pruned, exported, restored or quantized.

    `error` is what was raised; `network` takes images (N, C, H, W) of `shape` (C, H, W).
    """
    if isinstance(error, UserError):
        return error
    text = " ".join(f"{type(cause).__name__}: {cause}" for cause in causes(error))
    received = f"{model}, which cannot be {participle}: "
    known = _known_cause(error, text, received, network, shape)
    if known is not None:
        return known
    if place := user_line(error):
        return UserError(
            f"{model}, which raises {first_line(error)} in its forward pass ({place})",
            f"a forward pass that runs on images (N, {', '.join(map(str, shape))}) in train and in eval mode, and that "
            "torch.export can follow",
            "mend it there",
        )
    return UserError(
        f"{received}{first_line(error)}",
        "a network that torch.export and torch-pruning can follow",
        _LEAVE_OUT.get(participle, "write that part of it with other operators"),
    )


def _known_cause(
    error: Exception, text: str, received: str, network: nn.Module, shape: tuple[int, int, int]
) -> UserError | None:
    """Returns the error for a cause that `text`, the messages of `error`, shows; None for any other cause."""
    place = user_line(error)
    at = f" ({place})" if place else ""
    if any(mark in text for mark in _VALUES):
        return UserError(
            f"{received}data-dependent control flow: its forward pass takes a branch, or a number, from the values of "
            f"a tensor{at}",
            "the same operations for every image",
            "write torch.where in place of `if`, and no .item(), float(), int() or bool() of a tensor",
        )
    if any(mark in text for mark in _LEAVES_TORCH):
        return UserError(
            f"{received}its forward pass takes a tensor out of torch{at}: {first_line(error)}",
            "operations of torch on tensors",
            "write that step with torch in place of NumPy and lists",
        )
    if any(mark in text for mark in _ONE_BATCH_SIZE):
        line = _line_that_needs(network, shape, images=3)
        return UserError(
            f"{received}its forward pass works for one number of images alone{f' ({line})' if line else ''}: shapes "
            "there are numbers, no tensors' shapes",
            "any number of images N",
            "write x.flatten(1), or x.shape[0] in place of a number and of len(x), and no loop over the images",
        )
    operator = _operator(text)
    if operator:
        return UserError(
            f"{received}ONNX has no form of the operator {operator}{_line_of_operator(network, shape, operator)}",
            "operators that torch.onnx can write",
            "compute it with other operators",
        )
    return None


def _operator(text: str) -> str | None:
    """Returns the operator that the ONNX exporter could not translate; None where `text` names none."""
    if "No ONNX function found" in text or "Error when translating node" in text:
        found = _OPERATOR.search(text)
        return ".".join(found.group(1).split(".")[:2]) if found else None
    return None


def _line_of_operator(network: nn.Module, shape: tuple[int, int, int], operator: str) -> str:
    """Returns where the forward pass calls an operator, as " (net.py, line 12)"; an empty text where unknown."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    found = _quietly(
        lambda: (
            torch.export.export(network.eval(), (torch.zeros(2, *shape),), dynamic_shapes=dynamic)
            .run_decompositions()
            .graph.nodes
        )
    )
    lines = [line_of(node) for node in found or [] if operator in str(node.target)]
    return next(filter(None, lines), "")


def _line_that_needs(network: nn.Module, shape: tuple[int, int, int], images: int) -> str | None:
    """Returns the user's line that fails with `images` images; None where none fails."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(images, *shape))
    except Exception as error:  # a failure is what this looks for
        return user_line(error)
    return None


def _quietly(step: Callable[[], T]) -> T | None:
    """Returns what `step` returns; None where it raises, because it only adds a detail to a message."""
    try:
        return step()
    except Exception:
        return None
