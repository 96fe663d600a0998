"""Calls the user's function that builds their network."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from compress.models.seeds import seeded
from compress.utils.errors import UserError
from compress.utils.user_code import error_in_user_code

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_EXPECTED = "package.module:function, a function that returns a torch.nn.Module"
_IMPORT_SEED = 0  # a module is imported once, whatever the seed of the run

# Names of arguments that mean only one thing in a function that builds an image classifier.
CLASSES_NAMES = (
    "num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nb_class", "classes", "nclasses", "nclass",
    "numclasses", "class_num", "classes_num", "class_count", "n_cls", "num_cls", "num_labels", "n_labels", "numClasses",
    "nClasses", "number_of_classes", "no_classes", "num_categories",
)  # fmt: skip
CHANNELS_NAMES = (
    "in_channels", "in_chans", "in_ch", "in_chan", "in_channel", "input_channels", "input_channel", "n_channels",
    "num_channels", "nb_channels", "n_input_channels", "num_input_channels", "input_chans", "image_channels",
    "img_channels", "channels_in", "inchannels", "in_nc", "input_nc", "n_in_channels",
)  # fmt: skip
SIZE_NAMES = ("image_size", "img_size", "input_size", "input_resolution", "img_dim", "image_dim")


def call_factory(name: str, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """Calls teacher.factory=`name` for images (C, H, W), with all global random numbers seeded by `seed`.

    The number of classes, the number of channels and the size of the images are passed where an argument has a name
    for them. Raises UserError for a function that does not exist, that raises, or that returns no network.
    """
    build = _find(name)
    if isinstance(build, nn.Module):
        return build
    if not callable(build):
        raise UserError(f"teacher.factory={name}, which is {type(build).__name__}", _EXPECTED, "name a function")
    arguments, spare = _arguments(build, name, shape, classes)
    while True:
        with seeded(seed):
            try:
                network = build(**arguments, **spare)
                break
            except TypeError as error:
                refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if refused is None or refused[1] not in spare:
                    raise error_in_user_code(f"teacher.factory={name}", error) from error
                spare = _without(refused[1], spare)
            except (Exception, SystemExit) as error:
                raise error_in_user_code(f"teacher.factory={name}", error) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"teacher.factory={name}, which returned {type(network).__name__}", _EXPECTED, "return a network"
        )
    return network


def _find(name: str) -> Any:
    """Returns the object `name`. Raises UserError where it does not exist, or its module cannot be imported."""
    if not _FACTORY.fullmatch(name):
        raise UserError(f"teacher.factory={name}", _EXPECTED, "write it so")
    module_name, function = name.split(":")
    with seeded(_IMPORT_SEED):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise error_in_user_code(f"teacher.factory={name}", error) from error
            raise UserError(
                f"teacher.factory={name}: {error}",
                _EXPECTED,
                "mend the name, or start where the module lies, or put its folder into PYTHONPATH",
            ) from error
        except (Exception, SystemExit) as error:
            raise error_in_user_code(f"teacher.factory={name}", error) from error
    if not hasattr(module, function):
        near = difflib.get_close_matches(function, [key for key in vars(module) if not key.startswith("_")], 3, 0.5)
        raise UserError(
            f"teacher.factory={name}: {module_name} has no {function}",
            _EXPECTED,
            f"name {' or '.join(near)}, for example" if near else "mend the name",
        )
    return getattr(module, function)


def _arguments(
    build: Callable[..., Any], name: str, shape: tuple[int, int, int], classes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments that `build` names, and those that it may accept under **kwargs."""
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):  # a compiled function has no signature
        return {}, {}
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_name = {key: value for key, value in parameters.items() if value.kind in keywords}
    arguments: dict[str, Any] = {}
    for names, value in ((CLASSES_NAMES, classes), (CHANNELS_NAMES, shape[0])):
        found = [key for key in names if key in by_name]
        arguments |= dict.fromkeys(found[:1], value)
    for key in SIZE_NAMES:
        if key in by_name:
            arguments[key] = _size_like(by_name[key].default, shape)
    required = [
        key
        for key, value in parameters.items()
        if value.default is value.empty and value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)
    ]
    unknown = [key for key in required if key not in arguments]
    if unknown:
        raise UserError(
            f"teacher.factory={name}, which needs {', '.join(unknown)}",
            f"arguments that are known here (classes: {', '.join(CLASSES_NAMES[:7])}; channels: "
            f"{', '.join(CHANNELS_NAMES[:6])}; size: {', '.join(SIZE_NAMES[:2])}), and defaults for all others",
            "rename it, give it a default, or write a function around it",
        )
    spare: dict[str, Any] = {}
    if any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
        spare = {} if set(CLASSES_NAMES) & set(arguments) else {CLASSES_NAMES[0]: classes}
        spare |= {} if set(CHANNELS_NAMES) & set(arguments) else {CHANNELS_NAMES[0]: shape[0]}
    return arguments, spare


def _size_like(default: Any, shape: tuple[int, int, int]) -> Any:
    """Returns the size of the images in the form of the argument's default: a side, (H, W) or (C, H, W)."""
    if isinstance(default, (tuple, list)):
        return type(default)(shape if len(default) == 3 else shape[1:])
    return shape[1]


def _without(refused: str, spare: dict[str, Any]) -> dict[str, Any]:
    """Returns `spare` with the next usual name in place of the refused one, or without it."""
    remaining = {key: value for key, value in spare.items() if key != refused}
    for names in (CLASSES_NAMES[:3], CHANNELS_NAMES[:2]):
        if refused in names[:-1]:
            remaining[names[names.index(refused) + 1]] = spare[refused]
    return remaining
