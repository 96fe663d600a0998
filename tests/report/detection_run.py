"""The folder of a detection run, written from boxes and figures alone: no network is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compress.utils.detections import pad
from tests.report.tiny_run import NAMES, finish, write_tiny_run

SIDE, IMAGES = 128, 6
CLASSES = ("cat", "dog", "never seen")
SMALL, LARGE, CROWD = (4.0, 4.0, 28.0, 28.0), (20.0, 20.0, 120.0, 124.0), (90.0, 4.0, 120.0, 16.0)


def write_detection_run(
    folder: Path,
    stages: tuple[str, ...] = NAMES,
    classes: tuple[str, ...] = CLASSES,
    examples: bool = True,
    **figures: Any,
) -> Path:
    """A run in which each image has a small cat and a large dog, the first one a crowd of cats too.

    Every file finds all cats. The teacher's file finds all dogs but that of image 5; the last stage's finds all but
    those of images 2 and 3, and sees a dog in image 4 that is not there. `figures` are of its metrics.json.
    """
    write_tiny_run(folder, stages, classes=classes, extras=False)
    for number, name in enumerate(stages, 1):
        place, last = folder / f"{number:02d}_{name}", number == len(stages)
        compressed = last and number > 1
        missed = {2, 3} if compressed else {5}
        found = _detections(missed, false={4} if compressed else set())
        arrays = {"labels": _targets(), "detections": found, "deployed_detections": found}
        save_file(arrays | {"classes": np.array([len(classes)])}, place / "predictions.safetensors")
        _change(place / "metrics.json", _metrics(compressed) | (figures if last else {}))
        _change(place / "model.json", {"classes": list(classes)})
        if examples and number > 1:
            save_file({"images": _images(3), "index": np.array([2, 3, 0])}, place / "examples.safetensors")
        finish(place, {}, stages)
    return folder


def _targets() -> np.ndarray:
    rows = np.full((IMAGES, 3, 6), -2.0, np.float32)
    rows[:, 0] = [0, *SMALL, 0]
    rows[:, 1] = [1, *LARGE, 0]
    rows[0, 2] = [0, *CROWD, 2]
    return rows


def _detections(missed: set[int], false: set[int]) -> np.ndarray:
    found = []
    for image in range(IMAGES):
        dogs = [] if image in missed else [[1, 0.8, *LARGE]]
        others = [[1, 0.7, 0.0, 90.0, 30.0, 127.0]] if image in false else []
        unsure = [[1, 0.1, 60.0, 60.0, 80.0, 80.0]]
        found.append(np.array([[0, 0.9, *SMALL], *dogs, *others, *unsure], np.float32))
    return pad(found)


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def _metrics(compressed: bool) -> dict[str, Any]:
    percent = 83.0 if compressed else 91.5
    dogs = 2 * percent - 100.0
    return {
        "metric": "map50",
        "images": IMAGES,
        "objects": 2 * IMAGES,
        "deployed_map50_percent": percent,
        "deployed_map50_ci95_percent": [percent - 10, percent + 5],
        "deployed_map_percent": percent - 20,
        "deployed_map50_by_class_percent": [100.0, dogs, None],
        "deployed_map50_by_class_ci95_percent": [[100.0, 100.0], [dogs - 20, dogs + 10], None],
        "deployed_map_by_class_percent": [80.0, dogs - 20, None],
        "teacher_agreement_percent": 85.0,
        "map50_delta_points": -8.5 if compressed else 0.0,
        "map50_delta_ci95_points": [-20.0, 3.0] if compressed else [0.0, 0.0],
        "bootstrap_p_value": 0.125 if compressed else None,
    }


def _change(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")
