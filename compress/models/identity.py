"""Digests a network of the user's own from its modules, its code, its attributes and its tensors.

Differences in none of these show in the network's outputs, see `compress.models.outputs`.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compress.utils.files import digest_of, digest_of_file

_VERSIONED = ("torch", "torchvision", "timm")  # their versions are in a stage's key
# Python's own modules whose objects hold settings; others, such as loggers and locks, hold values that change.
_SETTINGS = ("types", "argparse", "enum", "pathlib", "collections", "dataclasses")
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_DEPTH = 6  # attributes inside attributes, at most
_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def user_model_digest(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's modules, the source and code of its classes, its attributes and tensors."""
    tensors = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if is_lazy(value):  # its layer has seen no image yet
            tensors.update(f"{name} uninitialized".encode())
            continue
        tensors.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        tensors.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    classes = {kind for module in network.modules() for kind in type(module).__mro__}
    own = [kind for kind in classes if kind.__module__.split(".")[0] not in _VERSIONED and kind is not object]
    return digest_of(
        {
            "modules": _ADDRESS.sub("", repr(network)),
            "sources": {f"{kind.__module__}.{kind.__qualname__}": _source(kind) for kind in own},
            "attributes": {name: _attributes(module) for name, module in network.named_modules()},
            "frozen": sorted(name for name, value in network.named_parameters() if not value.requires_grad),
            "tensors": tensors.hexdigest(),
        }
    )


def _is_library(module: str) -> bool:
    """Whether `module` is Python's own or an installed package, and so not the user's code."""
    top = module.split(".")[0]
    if top == "__main__":  # a notebook or a script, whose file may be that of the package that runs it
        return False
    if top in sys.stdlib_module_names or top in (*_VERSIONED, "numpy"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def _source(kind: type) -> list[Any]:
    """Returns the digest of the file that defines a class (None in a notebook), and the class's compiled code."""
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):
        path = None
    file = digest_of_file(path) if path is not None and Path(path).is_file() else None
    seen: set[int] = set()
    parts = {name: _describe(_function(value), seen, _DEPTH) for name, value in sorted(vars(kind).items())}
    return [file, {name: part for name, part in parts.items() if not _is_dunder_of_python(name)}]


def _is_dunder_of_python(name: str) -> bool:
    """Whether Python writes this entry of a class itself, so that no result depends on it."""
    return name in ("__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__qualname__",
                    "__parameters__", "__orig_bases__", "__static_attributes__", "__firstlineno__")  # fmt: skip


def _function(value: Any) -> Any:
    """Returns the function in a static method, class method, property or decorated function."""
    value = getattr(value, "fget", value) if isinstance(value, property) else getattr(value, "__func__", value)
    return getattr(value, "__wrapped__", value)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Describes the attributes of one module, without those of nn.Module itself."""
    usual = vars(nn.Module()).keys() | {"__deepcopy__", "_compiled_call_impl"}
    found = {name: value for name, value in vars(module).items() if name not in usual}
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        if vars(module).get(hooks):
            found[hooks] = tuple(vars(module)[hooks].values())  # their keys count all hooks of the process
    seen: set[int] = set()
    return {name: _describe(value, seen, _DEPTH) for name, value in sorted(found.items())}


def _describe(value: Any, seen: set[int], depth: int) -> Any:
    """Describes a value for digest_of, equally in each process: without addresses and without the order of sets.

    It skips the numbers of float tensors, because stored activations depend on the machine. Their effect shows in the
    network's outputs.
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in seen or depth == 0:
        return type(value).__qualname__
    seen.add(id(value))
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _array(value)
    if isinstance(value, dict):
        return sorted([str(_describe(key, seen, 1)), _describe(item, seen, depth - 1)] for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [_describe(item, seen, depth - 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_describe(item, seen, depth - 1)) for item in value)
    if isinstance(value, FunctionType):
        return _code(value, seen, depth)
    if isinstance(value, CodeType):
        return [value.co_code.hex(), [_describe(const, seen, depth) for const in value.co_consts], value.co_names]
    return _object(value, seen, depth)


def _object(value: Any, seen: set[int], depth: int) -> Any:
    """Describes a module, class or object by its name, and by its attributes if it is the user's or holds settings."""
    if isinstance(value, ModuleType):
        return value.__name__
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, PurePath):
        return [name, str(value)]
    bound = getattr(value, "__func__", None) or getattr(value, "func", None)  # a method, or functools.partial
    if isinstance(bound, FunctionType):
        arguments = getattr(value, "args", ()), getattr(value, "keywords", {})
        return [name, _describe(bound, seen, depth - 1), *(_describe(part, seen, depth - 1) for part in arguments)]
    if kind.__module__ == "builtins" and not isinstance(value, type):
        return getattr(value, "__qualname__", name)  # a built-in function or an iterator
    if _is_library(kind.__module__) and kind.__module__.split(".")[0] not in _SETTINGS:
        return name
    if isinstance(value, type) and _is_library(kind.__module__):
        return name
    held = vars(value).items() if hasattr(value, "__dict__") else ()
    parts = [[key, _function(part)] for key, part in held if not _is_dunder_of_python(key)]
    return [name, [[key, _describe(part, seen, depth - 1)] for key, part in sorted(parts, key=lambda row: row[0])]]


def _array(value: torch.Tensor | np.ndarray) -> list[Any]:
    if isinstance(value, torch.Tensor):
        exact = not (value.is_floating_point() or value.is_complex() or value.is_quantized or value.is_meta)
        numbers = value.detach().cpu().contiguous().numpy().tobytes() if exact else b""
    else:
        numbers = value.tobytes() if value.dtype.kind in "iub" else b""
    return [str(value.dtype), list(value.shape), hashlib.sha256(numbers).hexdigest()]


def _code(function: FunctionType, seen: set[int], depth: int) -> list[Any]:
    """Describes a function's code, constants, defaults and closure, and the functions and values that it names."""
    names = sorted({name for code in _codes(function.__code__) for name in code.co_names})
    named = {name: function.__globals__[name] for name in names if name in function.__globals__}
    closure = [_cell(cell) for cell in function.__closure__ or ()]
    module = function.__module__ or ""
    own = module == "builtins" or not _is_library(module)  # code that ran in exec is in builtins
    return [
        function.__qualname__,
        _describe(function.__code__, seen, depth) if own else None,
        _describe(function.__defaults__, seen, depth - 1),
        _describe(function.__kwdefaults__, seen, depth - 1),
        [_describe(value, seen, depth - 1) for value in closure],
        [[name, _describe(_function(value), seen, depth - 1)] for name, value in named.items()] if own else None,
    ]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yields the code of a function and of the functions defined in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None
