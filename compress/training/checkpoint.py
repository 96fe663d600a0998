"""Saves a training under way as one file, from which a stopped run continues; the file is checked when it is read."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from compress.utils.files import decisions_file, read_json, write_bytes, write_json

log = logging.getLogger(__name__)

State = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors by name, and values that JSON holds


@dataclass
class Checkpoint:
    """Where the state of a stage's training is saved, and how often."""

    path: Path
    key: str  # the stage's: a state with another key belongs to another computation
    minutes: float  # between two saves; 0: after every step
    _saved_s: float = field(init=False, default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Returns whether the last save, or the start, is long enough ago."""
        return time.monotonic() - self._saved_s >= 60 * self.minutes

    def save(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Replaces the last save. One file holds tensors and values, so that both are always of the same moment."""
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        text = json.dumps({"key": self.key, "values": values}, allow_nan=False)
        write_bytes(self.path, save(tensors, {"state": text, "sha256": _digest(tensors, text)}))
        self._saved_s = time.monotonic()

    def load(self) -> State | None:
        """Returns the last save, if any. A file that is damaged or of another stage is renamed, with a warning."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                notes = file.metadata() or {}
                # Copies, because the next save replaces the file that these would go on reading.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, it is no dict
        except SafetensorError as error:
            self._set_aside(f"it is damaged: {error}")
            return None
        text = notes.get("state", "")
        if notes.get("sha256") != _digest(tensors, text):
            self._set_aside("it is damaged: its digest is not the one that was written down")
            return None
        state = json.loads(text)
        if state["key"] != self.key:
            self._set_aside("it was made with other settings or from another input")
            return None
        return tensors, state["values"]

    def decide(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returned when the stage first came here, a value of JSON.

        What is measured by a clock would come out another way after a restart, and saved weights would not fit it.
        """
        decisions = read_json(self._decisions) if self._decisions.is_file() else {}
        if decisions.get("key") != self.key:
            decisions = {"key": self.key}
        if name not in decisions:
            decisions[name] = compute()
            write_json(self._decisions, decisions)
        return decisions[name]

    @property
    def _decisions(self) -> Path:
        return decisions_file(self.path)

    def _set_aside(self, reason: str) -> None:
        aside = self.path.with_name(self.path.name + ".set_aside")
        self.path.replace(aside)
        log.warning("%s is not used, and set aside as %s: %s; the training starts anew", self.path, aside.name, reason)


def _digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    """Returns the SHA-256 of the values, and of the tensors with their names, types and shapes.

    safetensors stores no digest of its own.
    """
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        total.update(f"{name} {array.dtype} {array.shape} ".encode())
        total.update(array.tobytes())
    return total.hexdigest()
