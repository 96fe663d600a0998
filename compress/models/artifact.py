"""What passes between stages: a network with its description, and how both become files that can be trusted."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from compress.models.outputs import fixed_outputs
from compress.utils.files import MODEL, OUTPUTS, SPEC, read_json, write_bytes, write_json


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
    """Writes model.safetensors, model.json, and outputs.safetensors, which `restore` compares; the network to the CPU.

    A spec without the shape of the images has no such outputs.
    """
    write_tensors(folder / MODEL, artifact.tensors())
    write_json(folder / SPEC, asdict(artifact.spec))
    if shape := artifact.spec.input.get("shape"):
        write_tensors(folder / OUTPUTS, {"outputs": fixed_outputs(artifact.network.cpu(), shape)})


def read_model(folder: Path) -> tuple[Spec, dict[str, torch.Tensor]]:
    """What `write_model` wrote."""
    return Spec(**read_json(folder / SPEC)), read_tensors(folder / MODEL)


def read_outputs(folder: Path) -> torch.Tensor | None:
    """The outputs on fixed images that `write_model` recorded; None in a folder of an earlier version."""
    return read_tensors(folder / OUTPUTS)["outputs"] if (folder / OUTPUTS).is_file() else None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As `write_bytes`, in safetensors' format."""
    write_bytes(path, save(tensors))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote."""
    return load(path.read_bytes())
