"""Networks of the user's own, beside the zoo: named by them on the command line or given in Python, never by a file."""

import copy
import hashlib
import importlib
import inspect
import re
from pathlib import Path

import torch
from torch import nn

from compress.errors import UserError
from compress.files import digest_of, digest_of_file

# By name, as they were given. A model.json can name only what is here, so no file brings code into a run.
OWN: dict[str, nn.Module] = {}

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LIBRARIES = ("torch", "torchvision", "timm")


def prepare_own(name: str, shape: tuple[int, int, int], classes: int, seed: int) -> None:
    """Makes teacher.factory=`name` known for images (C, H, W). Raises UserError where it is none, or does not fit."""
    if name not in OWN or ":" in name:  # a function is called anew: its weights depend on the seed
        _load_factory(name, shape[0], classes, seed)
    _require_fit(name, shape, classes)


def _load_factory(name: str, channels: int, classes: int, seed: int) -> None:
    """Puts what the function `package.module:function` returns among OWN.

    It is called with `num_classes` and `in_channels` where it takes them, behind torch.manual_seed(`seed`).
    Raises UserError for a function that is not there, or that returns no network.
    """
    expected = "package.module:function, a function that returns a torch.nn.Module"
    if not _FACTORY.fullmatch(name):
        raise UserError(f"teacher.factory={name}", expected, "write it so")
    module, function = name.split(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"teacher.factory={name}: {error}", expected, "mend the name, or the module's path") from error
    known = {"num_classes": classes, "in_channels": channels}
    taken = inspect.signature(build).parameters
    torch.manual_seed(seed)
    network = build(**{key: value for key, value in known.items() if key in taken})
    if not isinstance(network, nn.Module):
        raise UserError(
            f"teacher.factory={name}, which returned {type(network).__name__}", expected, "return a network"
        )
    OWN[name] = network


def _require_fit(name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Raises UserError unless the network takes images (N, C, H, W) of `shape` and gives logits (N, `classes`)."""
    network = copy.deepcopy(OWN[name]).cpu().eval()
    expected = f"a network from images (N, {', '.join(map(str, shape))}) to logits (N, {classes})"
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"{name}, which fails on such images: {error}", expected, "mend it, or set data.image_size"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{name}, which gives {found} for two images", expected, "mend its head")


def own_digest(network: nn.Module) -> str:
    """SHA-256 over what a network is: its modules, the source of its classes, and every tensor."""
    tensors = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        tensors.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        tensors.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    classes = {type(module) for module in network.modules()}
    own = [kind for kind in classes if kind.__module__.split(".")[0] not in _LIBRARIES]
    sources = {f"{kind.__module__}.{kind.__qualname__}": _source_digest(kind) for kind in own}
    return digest_of({"modules": repr(network), "sources": sources, "tensors": tensors.hexdigest()})


def _source_digest(kind: type) -> str | None:
    """Of the file that defines a class; of its compiled methods where there is none, as in a notebook."""
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        path = None
    if path is not None and Path(path).is_file():
        return digest_of_file(path)
    methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
    return digest_of(
        {name: [value.__code__.co_code.hex(), repr(value.__code__.co_names)] for name, value in methods.items()}
    )
