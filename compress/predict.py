"""Classifies images with the file that ships: `python -m compress.predict RUN IMAGE...`. Runs without torch."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, UnidentifiedImageError

from compress import files
from compress.errors import UserError
from compress.pixels import network_input

BATCH = 32
SHOWN = 3  # classes an image on the command line


class Classifier:
    """model.onnx of one stage, with the names of its classes."""

    def __init__(self, stage: Path):
        """`stage` is the folder of a whole stage. Raises UserError where a file of it changed since it was made."""
        self.path = stage / files.ONNX
        described = files.read_json(stage / files.SPEC)
        self.classes, self._input = described["classes"], described["input"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            self.path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def predict(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> list[dict[str, float]]:
        """Of each image every class with its probability, the likeliest first.

        An image is a file, an array uint8 (H, W), (H, W, 1) or (H, W, 3), or a Pillow image.
        Raises UserError for a file that holds no image.
        """
        found = []
        for start in range(0, len(images), BATCH):
            batch = np.stack([network_input(_open(image), self._input) for image in images[start : start + BATCH]])
            for row in _softmax(self._session.run(["logits"], {"image": batch})[0]):
                order = np.argsort(-row, kind="stable")
                found.append({self.classes[at]: float(row[at]) for at in order})
        return found


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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's own mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m compress.predict", description="Classify images with a run's file."
    )
    parser.add_argument("run", help="the folder of a run, or of one of its stages")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    options = parser.parse_args(arguments)
    try:
        classifier = load(options.run)
        predictions = classifier.predict(options.images)
    except UserError as error:
        print(f"compress: {error}", file=sys.stderr)
        return 2
    print(f"with {classifier.path}")
    width = max(map(len, options.images))
    for image, prediction in zip(options.images, predictions, strict=True):
        best = list(prediction.items())[:SHOWN]
        print(f"{image:<{width}}  " + "   ".join(f"{name} {100 * share:.2f} %" for name, share in best))
    return 0


def _open(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    try:
        with Image.open(image) as opened:
            opened.load()
            return opened
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{image}: {error}", "an image that can be decoded", "name another file") from error


def _from_array(image: np.ndarray) -> Image.Image:
    pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise UserError(f"an array {image.dtype} {image.shape}", "uint8 (H, W), (H, W, 1) or (H, W, 3)", "convert it")
    return Image.fromarray(pixels)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) to probabilities (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


if __name__ == "__main__":
    sys.exit(main())
