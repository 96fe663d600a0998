"""Networks of the user's own: named on the command line or given in Python, never by a file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from compress.models.copying import copy_network, unwrapped, without_wrappers
from compress.models.factory import call_factory
from compress.models.final_activation import without_final_activation
from compress.models.identity import user_model_digest
from compress.models.outputs import difference, fixed_images, outputs_digest
from compress.models.seeds import seeded
from compress.utils.errors import UserError
from compress.utils.user_code import error_in_user_code

__all__ = ["USER_MODELS", "identity", "register_user_model", "user_model", "user_model_digest"]

log = logging.getLogger("compress")

# The networks by name. A model.json can name only a network in this dict, so no file brings code into a run.
USER_MODELS: dict[str, nn.Module] = {}

_TOLERANCE = 1e-4  # the largest difference of two forward passes of one network, as a share of the largest output


def register_user_model(
    name: str, shape: tuple[int, int, int], classes: int, seed: int, task: str = "classification"
) -> None:
    """Adds the network of teacher.factory=`name` to USER_MODELS, for images (C, H, W).

    Raises UserError where `name` is no network or function that returns one, and where the network does not fit.
    """
    boxes = task == "detection"
    if name not in USER_MODELS or ":" in name:  # a function is called again: its weights depend on the seed
        build = lambda: _call_factory(name, shape, classes, seed, boxes)
        USER_MODELS[name] = build()
        _require_repeatable(name, build, shape)
    else:
        USER_MODELS[name] = _with_boxes(_plain_copy(USER_MODELS[name], name, shape, seed), name, shape, classes, boxes)
    if boxes:
        _require_same_again(name, fixed_images(shape)[:2], "outputs")
    else:
        _require_fit(name, shape, classes)
        USER_MODELS[name] = without_final_activation(USER_MODELS[name], name, shape)
    for names in _tied(USER_MODELS[name]):
        log.info("%s: %s are one tensor; where pruning changes its shape, each layer gets its own", name, names)


@contextmanager
def user_model(network: nn.Module) -> Iterator[str]:
    """Holds a copy of a network that was given in Python in USER_MODELS for a block; yields its name there.

    Raises UserError for a network that cannot be copied.
    """
    if not isinstance(network, nn.Module):
        raise UserError(f"model of {type(network).__name__}", "a torch.nn.Module", "give the trained network itself")
    network = without_wrappers(copy_network(unwrapped(network)))
    name = f"{type(network).__name__}@{user_model_digest(network)[:12]}"
    USER_MODELS[name] = network
    try:
        yield name
    finally:
        USER_MODELS.pop(name, None)


def identity(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns digests of the network `name`: of its code and tensors, and of its outputs for images (C, H, W)."""
    return {"parts": user_model_digest(USER_MODELS[name]), "outputs": outputs_digest(USER_MODELS[name], shape)}


def _call_factory(name: str, shape: tuple[int, int, int], classes: int, seed: int, boxes: bool) -> nn.Module:
    network = _plain_copy(call_factory(name, shape, classes, seed), name, shape, seed)
    return _with_boxes(network, name, shape, classes, boxes)


def _with_boxes(network: nn.Module, name: str, shape: tuple[int, int, int], classes: int, boxes: bool) -> nn.Module:
    """Returns the network, for `boxes` as a detector; a network that was given in Python may be one already."""
    if not boxes:
        return network
    from compress.models.user_detector import DETECTORS, to_detector  # torchvision's detectors take seconds

    if isinstance(network, DETECTORS):
        return network
    return to_detector(network, name, shape, classes)


def _plain_copy(network: nn.Module, name: str, shape: tuple[int, int, int], seed: int) -> nn.Module:
    """Copies a network into a form for all stages: no wrappers, float32, lazy layers initialized, no views."""
    network = without_wrappers(copy_network(unwrapped(network)))
    others = {str(value.dtype) for value in network.state_dict().values() if value.is_floating_point()}
    others.discard("torch.float32")
    if others:
        log.info("%s: its %s is converted to float32, which all stages compute in", name, " and ".join(sorted(others)))
        network.float()
    if any(map(is_lazy, network.state_dict().values())):
        if ":" not in name:
            log.warning("%s: its lazy layers have seen no image, so their weights are drawn now", name)
        with seeded(seed):
            _forward(network.eval(), name, torch.zeros(2, *shape), "")
    _separate_views(network)
    return network


def _tied(network: nn.Module) -> list[str]:
    """Returns the names of each parameter that several layers share, as one text."""
    names: dict[int, list[str]] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return [" and ".join(same) for same in names.values() if len(same) > 1]


def _separate_views(network: nn.Module) -> None:
    """Copies each tensor whose elements share memory, as after `expand`, in place."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is None or not torch._debug_has_internal_overlap(value):
                    continue
                plain = value.detach().contiguous().clone()
                tensors[name] = nn.Parameter(plain, value.requires_grad) if tensors is module._parameters else plain


def _require_repeatable(name: str, build: Callable[[], nn.Module], shape: tuple[int, int, int]) -> None:
    """Warns where a second call returns other weights or attributes.

    Raises UserError where it computes something else: such a network could not be loaded from the files of a stage.
    """
    first, second = USER_MODELS[name], build()
    if user_model_digest(first) == user_model_digest(second):
        state = None
    else:
        state = first.state_dict()
        log.warning(
            "%s: another call returns another network, though Python's, NumPy's and torch's random numbers are seeded; "
            "finished stages are not taken again, all is computed anew each time",
            name,
        )
    try:
        if state is not None:
            second.load_state_dict(state)
        outputs = [_seeded_outputs(network, name, shape) for network in (first, second)]
        repeatable = difference(*outputs) <= _TOLERANCE
    except (RuntimeError, UserError):  # other layers compute something else; a failure is `_require_fit`'s to report
        repeatable = state is None
    if not repeatable:
        raise UserError(
            f"teacher.factory={name}, which returns a network that computes something else at each call, with the same "
            "weights",
            "the same network from the same seed: it is built again from the files of each stage",
            "draw its random choices from torch, numpy.random or random, whose seeds are set here (not from "
            "numpy.random.default_rng(), the time or the environment), or register them as buffers",
        )


def _seeded_outputs(network: nn.Module, name: str, shape: tuple[int, int, int]) -> torch.Tensor:
    """Returns all numbers that `network` computes from fixed images, in one dimension."""
    with seeded(0):
        return _flat(_forward(network, name, fixed_images(shape), ""))


def _flat(value: Any) -> torch.Tensor:
    leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return torch.cat([leaf.detach().double().reshape(-1) for leaf in leaves]) if leaves else torch.zeros(0)


def _forward(network: nn.Module, name: str, images: torch.Tensor, expected: str) -> Any:
    """Returns the outputs of `network` in eval mode. Raises UserError, with file and line, where it fails."""
    network.eval()
    try:
        with torch.no_grad():
            return network(images)
    except Exception as error:
        fault = error_in_user_code(f"{name}, which fails on such images", error)
        expected = expected or f"a network that takes images (N, {', '.join(map(str, images.shape[1:]))})"
        raise UserError(
            fault.received.replace(", which raises", ":", 1), expected, "mend it, or set data.image_size"
        ) from error


def _require_fit(name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Raises UserError unless the network returns logits (N, `classes`) for images (N, C, H, W), the same each time."""
    network, images = USER_MODELS[name], fixed_images(shape)[:2]
    expected = f"a network from images (N, {', '.join(map(str, shape))}) to logits (N, {classes})"
    with seeded(0):
        logits = _forward(network, name, images, expected)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        received = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{name}, which gives {received} for two images", expected, "mend its head")
    _require_same_again(name, images, "logits")


def _require_same_again(name: str, images: torch.Tensor, what: str) -> None:
    """Raises UserError unless the network computes the same for the same images with other random numbers."""
    network, calls = USER_MODELS[name], []
    for seed in (0, 1):
        with seeded(seed):
            calls.append(_forward(network, name, images, ""))
    if not difference(calls[1], calls[0]) <= _TOLERANCE:
        raise UserError(
            f"{name}, which gives other {what} for the same images at a second call in eval mode",
            f"the same {what} each time",
            "where it is dropout: write F.dropout(x, p, self.training) or use nn.Dropout; keep what it counts or "
            "averages out of the forward pass",
        )
