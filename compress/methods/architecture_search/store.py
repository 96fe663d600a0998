"""Keeps what a search found in a folder: a search that was stopped goes on, and another choice needs no new search."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from compress.models.artifact import read_tensors, write_tensors
from compress.utils.file_lock import lock_file
from compress.utils.files import read_json, write_json

log = logging.getLogger("compress")

_TRIALS, _RESULTS, _WEIGHTS = "trials.jsonl", "results.json", "shared_weights.safetensors"
_HISTORY = "shared_history.json"


class Store:
    """Results by name, and distances of trials by their candidates' keys. None keeps them while the object lives."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._results: dict[str, Any] = {}
        self._distances: dict[str, float] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time search here; the others wait, and then find its results."""
        if self._folder is None:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self._folder, "lock", lambda holder: log.info("waiting for a search of the same network")):
            if (self._folder / _RESULTS).is_file():
                self._results = read_json(self._folder / _RESULTS)
            self._distances = _read_trials(self._folder / _TRIALS)
            yield

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returned when this name was first asked for, values of JSON."""
        if name not in self._results:
            self._results[name] = compute()
            if self._folder is not None:
                write_json(self._folder / _RESULTS, self._results)
        return self._results[name]

    def distance(self, key: str, compute: Callable[[], float]) -> float:
        """Returns the distance of a candidate, which is computed once."""
        if key not in self._distances:
            self._distances[key] = compute()
            if self._folder is not None:
                with (self._folder / _TRIALS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"candidate": key, "distance": self._distances[key]}) + "\n")
        return self._distances[key]

    @property
    def has_weights(self) -> bool:
        """Whether an earlier search left weights that its sub-networks share."""
        return self._folder is not None and (self._folder / _WEIGHTS).is_file()

    def save_weights(self, network: nn.Module, history: list[dict[str, float]]) -> None:
        """Keeps the weights of a network, and the rows of its training."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
            write_json(self._folder / _HISTORY, history)
            write_tensors(self._folder / _WEIGHTS, tensors)

    def load_weights(self, network: nn.Module) -> list[dict[str, float]]:
        """Loads the weights that `save_weights` kept, and returns the rows of their training."""
        if self._folder is None:
            raise ValueError("received a store without a folder; expected one that has weights")
        network.load_state_dict(read_tensors(self._folder / _WEIGHTS))
        return read_json(self._folder / _HISTORY)


def _read_trials(path: Path) -> dict[str, float]:
    """Reads the distances; a line that a killed process left unfinished is removed."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row["candidate"]: row["distance"] for row in rows}
