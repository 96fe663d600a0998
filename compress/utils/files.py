"""The files of stages and runs: names, writing them whole, and checking that none changed. Needs no torch."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from compress.utils.errors import UserError

MODEL, SPEC, ONNX = "model.safetensors", "model.json", "model.onnx"
_PART_BYTES = 2**20  # that are read at once
NMS_ONNX = "model_nms.onnx"  # a detector's, where export.nms is set
METRICS, PREDICTIONS, STAGE = "metrics.json", "predictions.safetensors", "stage.json"
SENSITIVITY, SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.html"
OUTPUTS = "outputs.safetensors"  # the network's outputs for fixed images, checked when it is loaded
PROFILE, EXAMPLES = "profile.json", "examples.safetensors"
EXITS = "exits.safetensors"  # where each test image leaves a network with exits, and some easy and hard images
TRAINING = "training.safetensors"  # the state of a stage under way; the name of its folder stands before it
REPEATS, CONTROLS = "repeats.json", "controls.json"  # in a run's folder
STATUS = "status.json"  # in a run's folder: that it is under way, or one of these states
FINISHED, FAILED, GIVEN_UP, STOPPED = "finished", "failed", "given up", "stopped"

_OWN = "digest"  # the key of the digest of stage.json's other content


def finish_stage(folder: Path, record: dict[str, Any]) -> None:
    """Writes stage.json, last and by rename: `record` with the digest of every other file, and its own."""
    record = record | {"files": digests(folder)}
    write_json(folder / STAGE, record | {_OWN: _own_digest(record)})


def finished_stage(folder: Path, key: str) -> dict[str, Any] | None:
    """Returns stage.json's record where the folder is whole, has the same `key`, and no file has changed since."""
    try:
        content = (folder / STAGE).read_bytes()
        record = json.loads(content)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(record, dict) or record.get("key") != key or record.get("files") != digests(folder):
        return None
    return record if record.get(_OWN) == _own_digest(record) and content == _as_json(record) else None


def _own_digest(record: dict[str, Any]) -> str:
    return digest_of({name: value for name, value in record.items() if name != _OWN})


def fresh_folder(folder: Path) -> None:
    """Makes `folder` empty, whatever an interrupted run, or one with other settings, had written there."""
    if folder.is_dir():
        (folder / STAGE).unlink(missing_ok=True)  # first: a kill in the middle must not leave a folder that looks whole
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def training_file(stage_dir: Path) -> Path:
    """Returns the file of a training under way: it is next to the stage's folder, which each start empties."""
    return stage_dir.with_name(f"{stage_dir.name}.{TRAINING}")


def decisions_file(training: Path) -> Path:
    """Returns the file of what a stage chose before and between its trainings."""
    return training.with_name(f"{training.name}.json")


def search_folder(stage_dir: Path) -> Path:
    """Returns the folder of a search under way, where no cache keeps it."""
    return stage_dir.with_name(f"{stage_dir.name}.search")


def remove_training(stage_dir: Path) -> None:
    """Removes the saved training of a finished stage, its decisions and its search, whole or half-written."""
    training = training_file(stage_dir)
    shutil.rmtree(search_folder(stage_dir), ignore_errors=True)
    for path in (training, decisions_file(training)):
        path.unlink(missing_ok=True)
        _part(path).unlink(missing_ok=True)


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file but stage.json."""
    return {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.name != STAGE and path.is_file() and not path.name.endswith(".part")
    }


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: a temporary name, synced, then renamed."""
    part = _part(path)
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_bytes` does. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_bytes(path, _as_json(value))


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Returns what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def inside(folder: Path, name: str) -> Path:
    """Returns the path of `name` in `folder`. Raises UserError for a recorded name that leads elsewhere."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise UserError(
            f"{folder} with a record of {name!r}", "names of files in that folder", "do not use this folder"
        )
    return folder / name


def digest_of_file(path: str | Path | None) -> str | None:
    """Returns the SHA-256 of a file's bytes; None without a path, and for a file that does not exist."""
    if path is None or not Path(path).is_file():
        return None
    return file_sha256(path)


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, which may be too many for the memory."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_PART_BYTES):
            total.update(part)
    return total.hexdigest()


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of plain values, by their sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def validation_curve(record: dict[str, Any]) -> list[float]:
    """Returns the validation metric of each epoch in percent, from stage.json's record; empty without training."""
    history = record["notes"].get("history", [])
    return [next(row[key] for key in row if key.startswith("val_") and key.endswith("_percent")) for row in history]
