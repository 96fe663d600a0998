"""What passes between stages: a network with its description, and how both become files that can be trusted."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

MODEL, SPEC, ONNX = "model.safetensors", "model.json", "model.onnx"
METRICS, PREDICTIONS, STAGE = "metrics.json", "predictions.safetensors", "stage.json"
SENSITIVITY, SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.png"


@dataclass
class Spec:
    """All of model.json: what rebuilds the network without the code that trained, pruned or quantized it."""

    architecture: dict[str, Any]
    classes: list[str]
    input: dict[str, Any]  # shape [C, H, W], range, mean, std, layout
    widths: dict[str, list[int]] = field(default_factory=dict)  # of the layers that pruning changed
    pruning: list[dict[str, Any]] = field(default_factory=list)  # a record a pruning: settings, filters removed
    quantization: dict[str, Any] | None = None


@dataclass
class Artifact:
    """A network between two stages."""

    network: nn.Module  # what computes: images (N, C, H, W) -> logits (N, K)
    spec: Spec
    left_out: list[dict[str, str]] = field(default_factory=list)  # by the last stage: {layer, reason}
    notes: dict[str, Any] = field(default_factory=dict)  # the last stage's own figures, for stage.json
    sensitivity: dict[str, Any] | None = None  # all of sensitivity.json, where it was measured
    state: dict[str, torch.Tensor] | None = None  # what is saved; None: the network's own state

    def tensors(self) -> dict[str, torch.Tensor]:
        """What model.safetensors holds: contiguous CPU tensors that share no memory."""
        state = self.network.state_dict() if self.state is None else self.state
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def write_model(artifact: Artifact, folder: Path) -> None:
    """Writes model.safetensors and model.json."""
    write_tensors(folder / MODEL, artifact.tensors())
    write_json(folder / SPEC, asdict(artifact.spec))


def read_model(folder: Path) -> tuple[Spec, dict[str, torch.Tensor]]:
    """What `write_model` wrote."""
    return Spec(**read_json(folder / SPEC)), read_tensors(folder / MODEL)


def finish_stage(folder: Path, record: dict[str, Any]) -> None:
    """Writes stage.json, last and by rename: `record` with the digest of every other file in the folder."""
    write_json(folder / STAGE, record | {"files": digests(folder)})


def finished_stage(folder: Path, key: str) -> dict[str, Any] | None:
    """stage.json's record where the folder is whole, was made from the same `key`, and no file has changed since."""
    try:
        record = read_json(folder / STAGE)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(record, dict) or record.get("key") != key or record.get("files") != digests(folder):
        return None
    return record


def fresh_folder(folder: Path) -> None:
    """An empty folder in place of whatever an interrupted run, or one with other settings, left there."""
    if folder.is_dir():
        (folder / STAGE).unlink(missing_ok=True)  # first: a kill in the middle must not leave a folder that looks whole
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file but stage.json."""
    return {
        path.name: digest_of_file(path)
        for path in sorted(folder.iterdir())
        if path.name != STAGE and path.is_file() and not path.name.endswith(".part")
    }


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: a temporary name, synced, then renamed."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`. Raises ValueError for NaN and infinity, which JSON has not."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As `write_bytes`, in safetensors' format."""
    write_bytes(path, save(tensors))


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote."""
    return load(path.read_bytes())


def digest_of_file(path: str | Path | None) -> str | None:
    """SHA-256 of a file's bytes; None for no file, or one that is not there."""
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of plain values, by their sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
