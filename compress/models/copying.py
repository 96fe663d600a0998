"""Copies networks that `copy.deepcopy` refuses, and removes the wrappers around a network."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compress.utils.errors import UserError

_STATE = ("_parameters", "_buffers", "_modules")  # in which every nn.Module holds its tensors and layers
_COPIER = "__deepcopy__"
# The class name of each wrapper, with the attribute that holds the network. Names, because most of these classes are
# in packages that need not be installed.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "ExponentialMovingAverage": "module",
    "FullyShardedDataParallel": "module",
    "_FabricModule": "_original_module",
}
_NO_WEIGHTS = ("ScriptModule", "RecursiveScriptModule", "TopLevelTracedModule", "ScriptFunction")


def unwrapped(network: nn.Module) -> nn.Module:
    """Returns the network inside torch.compile's, data-parallel and averaging wrappers, also inside several."""
    while (inner := _inside(network)) is not None:
        network = inner
    return network


def without_wrappers(network: nn.Module) -> nn.Module:
    """Returns the network inside all wrappers, and removes the wrappers of its layers in place."""
    network = unwrapped(network)
    while wrapper := next((name for name, module in network.named_modules() if _inside(module) is not None), None):
        parent, _, child = wrapper.rpartition(".")
        holder = network.get_submodule(parent)
        holder._modules[child] = unwrapped(getattr(holder, child))
    return network


def copy_network(network: nn.Module) -> nn.Module:
    """Returns a deep copy on the CPU that can be copied again; it shares attributes that cannot be copied (locks).

    Stored activations and computed weights are copied as plain values. Raises UserError for a network that cannot be
    copied in this way, and for TorchScript.
    """
    kinds = {kind.__name__ for module in network.modules() for kind in type(module).__mro__}
    if kinds & set(_NO_WEIGHTS):
        raise UserError(
            f"{type(network).__name__}, which holds TorchScript",
            "a network of Python classes: TorchScript can be neither pruned nor exported anew",
            "give the network that was scripted, and its weights by load_state_dict",
        )
    return _copy(network, {}).cpu()


def _inside(module: nn.Module) -> nn.Module | None:
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS and kind.__module__.split(".")[0] not in ("__main__", "builtins"):
            inner = getattr(module, _WRAPPERS[kind.__name__], None)
            return inner if isinstance(inner, nn.Module) else None
    return None


def _copy(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copies `network`; both `copy_network` and `copy.deepcopy` of such a network call it."""
    vars(network).pop(_COPIER, None)
    try:
        _add_plain_values(network, memo)
        try:
            copied = copy.deepcopy(network, dict(memo))
        except Exception:  # whatever an attribute's own copying raises: the attribute is then shared
            _share_what_cannot_be_copied(network, memo)
            copied = copy.deepcopy(network, memo)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{type(network).__name__}, which cannot be copied: {type(error).__name__}: {error}",
            "a network that copy.deepcopy takes",
            "keep what it names out of the network's attributes, or define __deepcopy__ for it",
        ) from error
    finally:
        vars(network)[_COPIER] = partial(_copy, network)
    vars(copied)[_COPIER] = partial(_copy, copied)
    return copied


def _add_plain_values(network: nn.Module, memo: dict[int, Any]) -> None:
    """Adds a detached copy of each computed tensor to `memo`, and a trainable copy of each inference tensor.

    `copy.deepcopy` refuses computed tensors, such as stored activations and the weight of
    torch.nn.utils.weight_norm; inference tensors can never be trained.
    """
    for module in network.modules():
        for value in vars(module).values():
            for tensor in _tensors(value):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = tensor.detach().clone()
    for tensor in (*network.parameters(), *network.buffers()):
        if is_lazy(tensor):  # torch copies the parameters of a lazy layer, not its buffers
            if not isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.UninitializedBuffer(device=tensor.device, dtype=tensor.dtype)
            continue
        if tensor.is_inference():
            plain = tensor.clone()
            memo[id(tensor)] = nn.Parameter(plain) if isinstance(tensor, nn.Parameter) else plain
        elif tensor.grad_fn is not None:
            memo[id(tensor)] = tensor.detach().clone()


def _tensors(value: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    """Yields the tensors in an attribute: itself, or those in lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)


def _share_what_cannot_be_copied(network: nn.Module, memo: dict[int, Any]) -> None:
    for module in network.modules():
        for name, value in vars(module).items():
            if name not in _STATE:
                _share(value, memo, depth=4)


def _share(value: Any, memo: dict[int, Any], depth: int) -> None:
    """Marks as shared the smallest parts of `value` that cannot be copied."""
    if _can_be_copied(value, memo):
        return
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = list(vars(value).values())
    if depth and parts:
        for part in parts:
            _share(part, memo, depth - 1)
        if _can_be_copied(value, memo):
            return
    memo[id(value)] = value


def _can_be_copied(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # whatever an attribute's own copying raises
        return False
    return True
