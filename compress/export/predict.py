"""Classifies images with the file that ships: `python -m compress.predict RUN IMAGE...`. Runs without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.export.onnx_session import open_session
from compress.utils import files
from compress.utils.errors import UserError
from compress.utils.image_layout import to_numpy
from compress.utils.images import opened, preprocess

BATCH = 32


class Classifier:
    """model.onnx of one stage, with the names of its classes."""

    def __init__(self, stage: Path):
        """`stage` is the folder of a whole stage. Raises UserError where a file of it changed since it was made."""
        self.path = stage / files.ONNX
        described = files.read_json(stage / files.SPEC)
        self.classes, self._input = described["classes"], described["input"]
        multilabel = described.get("task") == "multilabel"
        self._probabilities = _sigmoid if multilabel else _softmax
        self._session = open_session(self.path)

    def predict(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> list[dict[str, float]]:
        """Of each image every class with its probability, the likeliest first; of several labels each has its own.

        An image is a file, a Pillow image, or an array or a tensor (H, W), (H, W, C) or (C, H, W) of uint8, uint16 or
        floats in [0, 1]. Raises UserError for a file that holds no image, and for pixels that the network cannot have.
        """
        images, found = _several(images, self._input["shape"][0]), []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            batch = np.stack([self._pixels(image, f"image {start + at}") for at, image in enumerate(part)])
            for row in self._probabilities(self._session.run(["logits"], {"image": batch})[0]):
                order = np.argsort(-row, kind="stable")
                found.append({self.classes[at]: float(row[at]) for at in order})
        return found

    def _pixels(self, image: Any, name: str) -> np.ndarray:
        """float32 (C, S, S), as the network reads it."""
        if not isinstance(image, (str, Path)):
            return preprocess(image if isinstance(image, Image.Image) else to_numpy(image), self._input, name)
        with opened(image, str(image)) as file:
            return preprocess(file, self._input, str(image))


def load(run: str | Path) -> Classifier:
    """The classifier of a run's int8 file, of its last stage where none is int8, or of the stage whose folder is given.

    Raises UserError where there is no whole stage, or a file changed since it was written.
    """
    run = Path(run)
    stages = [run] if (run / files.STAGE).is_file() else sorted(path.parent for path in run.glob(f"*/{files.STAGE}"))
    if not stages:
        raise UserError(f"{run} without a finished stage", "the folder of a run", "name one that ended, in outputs/")
    int8 = [stage for stage in stages if files.read_json(stage / files.SPEC)["quantization"]]
    stage = (int8 or stages)[-1]
    recorded = files.read_json(stage / files.STAGE)["files"]
    for name in (files.ONNX, files.SPEC):
        if files.digest_of_file(stage / name) != recorded[name]:
            raise UserError(
                f"{stage / name}, changed since it was written", "the file that was measured", "run the recipe again"
            )
    return Classifier(stage)


def _several(images: Any, channels: int) -> Sequence[Any]:
    """A list of images of one image, too. Raises UserError for an array that may be one image or several."""
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    shape = getattr(images, "shape", None)
    if shape is None:
        return list(images)
    ends = {shape[0], shape[-1]}
    if len(shape) < 3 or (len(shape) == 3 and (shape[-1] <= 4 or (channels > 1 and channels in ends))):
        raise UserError(
            f"an array of shape {tuple(shape)}",
            "several images, (N, H, W) or (N, H, W, C)",
            "give one image as [image]",
        )
    several: Sequence[Any] = images
    return several


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) to probabilities (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(1, keepdims=True)
    return probabilities


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """(N, K) to a probability of each label, (N, K)."""
    probabilities: np.ndarray = 1 / (1 + np.exp(-logits))
    return probabilities
