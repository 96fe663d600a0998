"""The result of a stage: a network with its description, and the files that hold both."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from compress.models.outputs import fixed_outputs
from compress.utils.files import MODEL, OUTPUTS, SPEC, read_json, write_bytes, write_json

_WITH_EXITS = ("early_exit", "dynamic_width")  # methods after which the network selects among several ends by image


@dataclass
class Spec:
    """The content of model.json: it rebuilds the network without the code that trained, pruned or quantized it."""

    architecture: dict[str, Any]
    classes: list[str]
    input: dict[str, Any]  # shape [C, H, W], range, mean, std, layout
    task: str = "classification"  # what the outputs mean, a name in `compress.tasks`
    temperature: float = 1.0  # by which logits are divided before they become probabilities
    # The changes that stages made to the architecture, in order: {"method": a name in `compress.methods.restore`, ...}.
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def widths(self) -> dict[str, list[int]]:
        """The channels of each layer whose width differs from the architecture's."""
        widths: dict[str, list[int]] = {}
        for change in self.changes:
            widths |= change.get("widths", {})
        return widths

    @property
    def pruning(self) -> list[dict[str, Any]]:
        """The record of each pruning: its settings, and the filters that it kept."""
        return [change for change in self.changes if change["method"] == "prune"]

    @property
    def exits(self) -> dict[str, Any] | None:
        """The record of the stage that lets images end early, at exits or at widths; None where no stage did."""
        return next((change for change in self.changes if change["method"] in _WITH_EXITS), None)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The record of the quantization; None for a float network."""
        return next((change for change in self.changes if change["method"] == "quantize"), None)

    def changed(self, method: str, **record: Any) -> "Spec":
        """Returns the spec with one more change."""
        return replace(self, changes=[*self.changes, {"method": method} | record])


@dataclass
class Artifact:
    """The network that one stage returns and the next one receives."""

    network: nn.Module  # images (N, C, H, W) -> logits (N, K)
    spec: Spec
    left_out: list[dict[str, str]] = field(default_factory=list)  # {layer, reason}: layers that the stage skipped
    notes: dict[str, Any] = field(default_factory=dict)  # the stage's own figures, for stage.json
    sensitivity: dict[str, Any] | None = None  # the content of sensitivity.json, where it was measured
    state: dict[str, torch.Tensor] | None = None  # the tensors to save; None: the network's own state

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the content of model.safetensors: contiguous CPU tensors that share no memory."""
        state = self.network.state_dict() if self.state is None else self.state
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def write_model(artifact: Artifact, folder: Path) -> None:
    """Writes model.safetensors, model.json, and outputs.safetensors, with which `restore` compares the network.

    It moves the network to the CPU. A spec without the shape of the images has no such outputs.
    """
    write_tensors(folder / MODEL, artifact.tensors())
    spec = artifact.spec
    views = {"widths": spec.widths, "pruning": spec.pruning, "quantization": spec.quantization}
    write_json(folder / SPEC, asdict(spec) | views)
    if shape := artifact.spec.input.get("shape"):
        write_tensors(folder / OUTPUTS, {"outputs": fixed_outputs(artifact.network.cpu(), shape)})


def read_model(folder: Path) -> tuple[Spec, dict[str, torch.Tensor]]:
    """Reads what `write_model` of this or an earlier version wrote; early versions had no list of changes."""
    content = read_json(folder / SPEC)
    views = {name: content.pop(name) for name in ("widths", "pruning", "quantization")}
    if "changes" not in content:
        pruned = [{"method": "prune", "widths": views["widths"]} | record for record in views["pruning"]]
        quantized = [{"method": "quantize"} | views["quantization"]] if views["quantization"] else []
        content["changes"] = pruned + quantized
    return Spec(**content), read_tensors(folder / MODEL)


def read_outputs(folder: Path) -> torch.Tensor | None:
    """Reads the outputs on fixed images that `write_model` recorded; None in a folder of an earlier version."""
    return read_tensors(folder / OUTPUTS)["outputs"] if (folder / OUTPUTS).is_file() else None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes tensors in safetensors' format, as `write_bytes` does."""
    write_bytes(path, save(tensors))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads what `write_tensors` wrote."""
    return load(path.read_bytes())
