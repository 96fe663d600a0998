"""Loads weights that were trained elsewhere, without running code that a file may contain."""

import argparse
import difflib
import pathlib
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from compress.models.candidates import Candidate, Tensors, candidates, choose
from compress.utils.errors import UserError

_MAX_NAMES = 3  # a message lists these and counts the rest
# Classes of plain values that training scripts store with the weights: the command line of torchvision and timm, a
# NumPy number such as the best accuracy, a path. Reading them runs no code.
_PLAIN_CLASSES = [
    argparse.Namespace, pathlib.PosixPath, np.dtype, getattr(np, "_core", np).multiarray.scalar,
    *(getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "Int32DType", "BoolDType")),
]  # fmt: skip
_HINTS = {
    "_orig": "it was pruned with torch.nn.utils.prune: call prune.remove on each layer before saving it",
    "_mask": "it was pruned with torch.nn.utils.prune: call prune.remove on each layer before saving it",
    "_packed_params": "it is quantized: give the float network's weights",
    "zero_point": "it is quantized: give the float network's weights",
}
_QUANTIZED = (torch.int8, torch.uint8, torch.qint8, torch.quint8, torch.qint32)


def load_checkpoint(network: nn.Module, path: str, key: str | None = None) -> list[str]:
    """Loads every tensor of `network` from `.safetensors`, or from a file for `torch.load(weights_only=True)`.

    Names may have the prefixes of wrappers, and weights may lie under keys. Where several sets of weights fit, the
    averaged one (EMA) is loaded, or the one that `key` names. Returns remarks on what was chosen and converted. Raises
    UserError for a file that is missing or broken, or holds pickled code, quantized weights or another architecture's.
    """
    expected = network.state_dict()
    chosen, remarks = _choose(expected, path, key)
    _require_fit(expected, chosen, path)
    network.load_state_dict(expected | _converted(expected, chosen, path, remarks))
    return remarks


def load_backbone(backbone: nn.Module, path: str, key: str | None = None) -> list[str]:
    """Loads the tensors of `backbone` from the checkpoint of a classifier, as `load_checkpoint` does.

    The rest of the checkpoint, its classifier, is not read.
    """
    expected = backbone.state_dict()
    chosen, remarks = _choose(expected, path, key)
    inside = Candidate(chosen.key, {name: v for name, v in chosen.tensors.items() if name in expected})
    _require_fit(expected, inside, path)
    backbone.load_state_dict(expected | _converted(expected, inside, path, remarks))
    left = sorted(chosen.tensors.keys() - expected.keys())
    if left:
        remarks.append(f"{path}: {len(left)} tensors of the classifier are no part of the backbone")
    return remarks


def _choose(expected: Tensors, path: str, key: str | None) -> tuple[Candidate, list[str]]:
    """Returns the set of weights in a file that fits best, and remarks."""
    content = _read(Path(path))
    found = candidates(content, expected)
    if not found:
        keys = f" with {', '.join(map(str, list(content)[:_MAX_NAMES]))}" if isinstance(content, dict) else ""
        raise UserError(
            f"{path}, a {type(content).__name__}{keys}, without weights by name",
            "a dict of tensors",
            "save model.state_dict()",
        )
    return choose(found, path, key)


def _converted(expected: Tensors, chosen: Candidate, path: str, remarks: list[str]) -> Tensors:
    """Returns the chosen tensors in the types of `expected`, and adds a remark on those that were converted."""
    state = {name: chosen.tensors[name] for name in expected if name in chosen.tensors}
    wrong = [fault for name, value in state.items() if (fault := _wrong_kind(name, value, expected[name]))]
    if wrong:
        raise UserError(
            f"{path} with {wrong[0]}{f' and {len(wrong) - 1} more' * (len(wrong) > 1)}",
            "floating-point weights of the network before it was quantized",
            "take the float checkpoint that these were made from",
        )
    floats = {name: value for name, value in state.items() if expected[name].is_floating_point()}
    converted = sorted({str(value.dtype) for name, value in floats.items() if value.dtype != expected[name].dtype})
    state = {name: value.to_dense().to(expected[name].dtype) for name, value in state.items()}
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"{path}: {_some('not finite:', bad)}", "finite weights", "take another checkpoint")
    if converted:
        remarks.append(f"{path}: {' and '.join(converted)} converted to float32")
    return state


def _require_fit(expected: dict[str, torch.Tensor], found: Candidate, path: str) -> None:
    """Raises UserError, with missing, extra and nearest names, unless `found` has the expected names and shapes."""
    missing, extra = found.missing(expected), found.extra(expected)
    wrong = [name for name in expected if name in found.tensors and expected[name].shape != found.tensors[name].shape]
    if not (missing or extra or wrong):
        return
    shapes = ", ".join(
        f"{tuple(found.tensors[name].shape)} for {tuple(expected[name].shape)}" for name in wrong[:_MAX_NAMES]
    )
    near = {name: difflib.get_close_matches(name, extra, 1, 0.6) for name in missing[:_MAX_NAMES]}
    nearest = [f"{names[0]} for {name}" for name, names in near.items() if names]
    parts = [
        _some("lacks", missing),
        _some("has besides", extra),
        f"nearest names: {', '.join(nearest)}; " if nearest else "",
        _some("other shapes in", wrong) + (f"in the file {shapes} in the network; " if wrong else ""),
    ]
    where = f" under {found.key}" if found.key else ""
    raise UserError(
        f"{path}{where}: {''.join(parts)}".rstrip("; "),
        "a checkpoint of the architecture that is configured",
        _fix_for(missing, extra, wrong),
    )


def _fix_for(missing: list[str], extra: list[str], wrong: list[str]) -> str:
    hint = next((text for ending, text in _HINTS.items() if any(name.endswith(ending) for name in extra)), None)
    if hint:
        return hint
    if wrong and not missing and not extra:
        return "check the number of classes and of channels of the data, teacher.model and teacher.stem"
    return (
        "check teacher.model, teacher.stem, the number of classes and of channels; a prefix that all names share and a "
        "key around them (teacher.checkpoint_key) are taken off by themselves"
    )


def _wrong_kind(name: str, value: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Returns why the numbers in `value` cannot be converted to the type of `expected`; None where they can."""
    if value.is_meta:
        return f"{name} without values (device meta)"
    if value.is_quantized or (expected.is_floating_point() and value.dtype in _QUANTIZED):
        return f"{name} as {value.dtype}, which looks quantized, where the network has {expected.dtype}"
    if expected.is_floating_point():
        # Floats of eight bits need a separate scale; only 16 bits or more are a weight by themselves.
        if not value.is_floating_point() or value.element_size() < 2:
            return f"{name} as {value.dtype} where the network has {expected.dtype}"
        return None
    if expected.is_complex() != value.is_complex():
        return f"{name} as {value.dtype} where the network has {expected.dtype}"
    converted = value.to(expected.dtype)
    if not expected.is_complex() and not torch.equal(converted.to(torch.float64), value.to(torch.float64)):
        return f"{name} as {value.dtype} with values that {expected.dtype} cannot hold"
    return None


def _read(path: Path) -> object:
    if not path.is_file():
        what = ", a folder" if path.is_dir() else ""
        raise UserError(f"teacher.checkpoint={path}{what}", "a file that exists", "mend the path")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_tensors(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError, TypeError) as error:
        expected = "a file of tensors alone: .safetensors, or a state_dict saved by torch.save"
        if "TorchScript" in str(error):
            raise UserError(
                f"{path}, a TorchScript archive", expected, "save torch.jit.load(FILE).state_dict() with torch.save"
            ) from error
        classes = re.findall(r"(?:Unsupported global: GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if classes:
            raise UserError(
                f"{path}, which holds a Python object of {classes[0]}",
                expected,
                "where you trust the file, save its weights anew: torch.save(torch.load(FILE, weights_only=False)"
                "['state_dict'], NEW), or model.state_dict() of a whole module; pickled code is never run here",
            ) from error
        raise UserError(
            f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            expected,
            "save model.state_dict() with safetensors.torch.save_file; a file with pickled code in it is never run",
        ) from error


def _load_tensors(path: Path) -> object:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN_CLASSES):
        warnings.simplefilter("ignore")  # about pickle's protocol, which does not matter if the tensors can be read
        return torch.load(path, map_location="cpu", weights_only=True)


def _some(what: str, names: list[str]) -> str:
    return (
        f"{what} {', '.join(names[:_MAX_NAMES])}{f' and {len(names) - _MAX_NAMES} more' * (len(names) > _MAX_NAMES)}; "
        if names
        else ""
    )
