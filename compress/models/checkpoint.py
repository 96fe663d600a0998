"""Reads weights that were trained elsewhere, without running a line of code that may hide in the file."""

import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from compress.errors import UserError

_SHOWN = 3  # names in a message; the count tells the rest


def load_checkpoint(network: nn.Module, path: str) -> None:
    """Loads `.safetensors`, or what `torch.load(weights_only=True)` takes, into `network`, every tensor of it.

    A `state_dict` key and a `module.` prefix (DataParallel) are understood. Raises UserError for a file that is
    missing, broken, holds pickled code or belongs to another architecture.
    """
    state = _read(Path(path))
    own = network.state_dict()
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    # BatchNorm's counter of batches is not part of what a network computes; old files lack it.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    if missing or extra or wrong:
        raise UserError(
            f"{path}: {_some('lacks', missing)}{_some('has besides', extra)}{_some('other shapes in', wrong)}".rstrip(
                "; "
            ),
            "a checkpoint of the architecture that is configured",
            "check teacher.model, teacher.stem, the number of classes and of channels",
        )
    bad = [name for name in state if state[name].is_floating_point() and not state[name].isfinite().all()]
    if bad:
        raise UserError(f"{path}: {_some('not finite:', bad)}", "finite weights", "take another checkpoint")
    network.load_state_dict(own | state)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"teacher.checkpoint={path}", "a file that exists", "mend the path")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_tensors(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "a file of tensors alone: .safetensors, or a state_dict saved by torch.save",
            "save model.state_dict() with safetensors.torch.save_file; a file with pickled code in it is never run",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} with {type(content).__name__}", "a dict of tensors", "save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _load_tensors(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle's protocol: what matters is whether the tensors can be read
        return torch.load(path, map_location="cpu", weights_only=True)


def _some(what: str, names: list[str]) -> str:
    return (
        f"{what} {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)}; "
        if names
        else ""
    )
