"""Classifies images, or finds objects in them, with the file that ships: `compress.load(RUN)`. Runs without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.export.onnx_session import open_session
from compress.utils import files
from compress.utils.detections import select
from compress.utils.errors import UserError
from compress.utils.image_layout import one_image, to_numpy
from compress.utils.images import opened, preprocess, upright_size

BATCH = 32
MIN_SCORE = 0.5  # of the objects that are returned unless another is asked for

Images = Sequence[str | Path | Image.Image | np.ndarray]
Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Detection:
    """An object in an image: its class, its score from 0 to 1, and its box (x1, y1, x2, y2) in the image's pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Classifier:
    """model.onnx of one stage, with the names of its classes."""

    def __init__(self, stage_dir: Path):
        """Opens the file of a finished stage."""
        self.path = stage_dir / files.ONNX
        described = files.read_json(stage_dir / files.SPEC)
        self.classes, self._input = described["classes"], described["input"]
        multilabel = described.get("task") == "multilabel"
        self._probabilities = _sigmoid if multilabel else _softmax
        self._temperature = described.get("temperature", 1.0)  # earlier versions wrote none
        self._session = open_session(self.path)

    def predict(self, images: Images) -> list[dict[str, float]]:
        """Returns every class with its probability for each image, the likeliest first.

        Probabilities of one class an image add up to 1; with several labels an image, each label has its own. The
        temperature in model.json makes them as sure as validation images say.

        An image is a file, a Pillow image, or an array or a tensor (H, W), (H, W, C) or (C, H, W) of uint8, uint16 or
        floats in [0, 1]. Raises UserError for a file that holds no image, and for pixels that the network cannot read.
        """
        found = []
        for batch, _ in _batches(images, self._input):
            for row in self._probabilities(self._session.run(["logits"], {"image": batch})[0] / self._temperature):
                order = np.argsort(-row, kind="stable")
                found.append({self.classes[at]: float(row[at]) for at in order})
        return found


class Detector:
    """model.onnx of one stage of a detector, with the names of its classes."""

    def __init__(self, stage_dir: Path):
        """Opens the file of a finished stage."""
        self.path = stage_dir / files.ONNX
        described = files.read_json(stage_dir / files.SPEC)
        self.classes, self.input = described["classes"], described["input"]
        self._session = open_session(self.path)

    def predict(self, images: Images, min_score: float = MIN_SCORE) -> list[list[Detection]]:
        """Returns the objects in each image whose score is at least `min_score`, the surest first, at most 100.

        Boxes are in pixels of the image as it was given, turned upright where its EXIF orientation asks for that.
        `images` are those that a Classifier takes. Raises UserError as it does, and for a score that cannot be.
        """
        require_score(min_score)
        found = []
        for batch, sizes in _batches(images, self.input):
            for boxes, scores, size in zip(*self.outputs(batch), sizes, strict=True):
                found.append(self.detections(boxes, scores, size, min_score))
        return found

    def outputs(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the file's boxes (N, A, 4) and scores (N, A, K) for images (N, C, S, S)."""
        boxes, scores = self._session.run(["boxes", "scores"], {"image": batch})
        return boxes, scores

    def detections(self, boxes: np.ndarray, scores: np.ndarray, size: Size, min_score: float) -> list[Detection]:
        """Returns the objects of one image of `size` from its boxes (A, 4) and scores (A, K)."""
        below = np.nextafter(np.float32(min_score), np.float32(-1))  # `select` returns what is above it
        rows = select(boxes, scores, float(below)).astype(np.float64)
        rows[:, 2:] *= np.array([*size, *size]) / self.input["shape"][1]
        return [
            Detection(self.classes[int(number)], score, (x1, y1, x2, y2))
            for number, score, x1, y1, x2, y2 in rows.tolist()
        ]


_PREDICTORS: dict[str, type[Classifier] | type[Detector]] = {
    "classification": Classifier,
    "multilabel": Classifier,
    "detection": Detector,
}


def load(run: str | Path) -> Classifier | Detector:
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
    return _PREDICTORS[files.read_json(stage_dir / files.SPEC).get("task", "classification")](stage_dir)


def require_score(min_score: float) -> None:
    """Raises UserError for a lowest score that is not from 0 to 1."""
    if not 0 <= min_score <= 1:
        raise UserError(f"{min_score} as the lowest score", "a number from 0 to 1", "give one in that range, as 0.5")


def read(image: Any, described: dict[str, Any], name: str) -> tuple[np.ndarray, Size]:
    """Returns an image as the network reads it, float32 (C, S, S), and its upright size.

    `described` is model.json's `input`. Raises UserError, with `name`, for an image that the network cannot read.
    """
    if isinstance(image, (str, Path)):
        with opened(image, str(image)) as file:
            return read(file, described, str(image))
    if isinstance(image, Image.Image):
        return preprocess(image, described, name), upright_size(image)
    pixels = to_numpy(image)
    height, width = one_image(pixels, name, described["shape"][0]).shape[:2]
    return preprocess(pixels, described, name), (width, height)


def _batches(images: Images, described: dict[str, Any]) -> Iterator[tuple[np.ndarray, list[Size]]]:
    """Yields the images, prepared, in batches (N, C, S, S), with their sizes."""
    images = _several(images, described["shape"][0])
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        prepared = [read(image, described, f"image {start + at}") for at, image in enumerate(part)]
        yield np.stack([pixels for pixels, _ in prepared]), [size for _, size in prepared]


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
