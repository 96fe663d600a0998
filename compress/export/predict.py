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

    def __init__(self, stage_dir: Path):
        """Opens the file of a finished stage."""
        self.path = stage_dir / files.ONNX
        described = files.read_json(stage_dir / files.SPEC)
        self.classes, self._input = described["classes"], described["input"]
        multilabel = described.get("task") == "multilabel"
        self._probabilities = _sigmoid if multilabel else _softmax
        self._session = open_session(self.path)

    def predict(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> list[dict[str, float]]:
        """Returns every class with its probability for each image, the likeliest first.

        Probabilities of one class an image add up to 1; with several labels an image, each label has its own.

        An image is a file, a Pillow image, or an array or a tensor (H, W), (H, W, C) or (C, H, W) of uint8, uint16 or
        floats in [0, 1]. Raises UserError for a file that holds no image, and for pixels that the network cannot read.
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
        """Returns an image as the network reads it, float32 (C, S, S)."""
        if not isinstance(image, (str, Path)):
            return preprocess(image if isinstance(image, Image.Image) else to_numpy(image), self._input, name)
        with opened(image, str(image)) as file:
            return preprocess(file, self._input, str(image))


def load(run: str | Path) -> Classifier:
    """Opens a run's int8 file, that of its last stage where none is int8, or that of a stage whose folder is given.

    Raises UserError where there is no whole stage, or a file changed since it was written.
    """
    run = Path(run)
    stage_dirs = (
        [run] if (run / files.STAGE).is_file() else sorted(path.parent for path in run.glob(f"*/{files.STAGE}"))
    )
    if not stage_dirs:
        raise UserError(f"{run} without a finished stage", "the folder of a run", "name one that ended, in outputs/")
    int8 = [stage_dir for stage_dir in stage_dirs if files.read_json(stage_dir / files.SPEC)["quantization"]]
    stage_dir = (int8 or stage_dirs)[-1]
    recorded = files.read_json(stage_dir / files.STAGE)["files"]
    for name in (files.ONNX, files.SPEC):
        if files.digest_of_file(stage_dir / name) != recorded[name]:
            raise UserError(
                f"{stage_dir / name}, changed since it was written",
                "the file that was measured",
                "run the recipe again",
            )
    return Classifier(stage_dir)


def _several(images: Any, channels: int) -> Sequence[Any]:
    """Returns the images, one image as a list of it. Raises UserError for an array that may be one image or several."""
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
    """Returns the probabilities (N, K) of logits (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(1, keepdims=True)
    return probabilities


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the probability of each label (N, K) from logits (N, K)."""
    probabilities: np.ndarray = 1 / (1 + np.exp(-logits))
    return probabilities
