"""Draws detections into pictures with Pillow, and writes them to a folder."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from compress.export.predict import Detection
from compress.utils.class_colours import class_colour
from compress.utils.errors import UserError
from compress.utils.images import opened, read

_LINE, _TEXT = 1 / 160, 1 / 30  # width of a line and size of the text, as shares of the picture's shorter side
_THINNEST, _SMALLEST = 2, 12  # pixels
_KEPT = (".png", ".jpg", ".jpeg")  # a picture of another format is written as PNG


def draw_boxes(picture: Image.Image, found: Sequence[Detection], classes: Sequence[str]) -> None:
    """Draws boxes with labels and scores into an RGB picture in place, the surest on top.

    A colour stands for a class; `classes` are all that the detector knows.
    """
    canvas, shorter = ImageDraw.Draw(picture), min(picture.size)
    colours = {label: class_colour(number) for number, label in enumerate(classes)}
    width, text_size = max(_THINNEST, round(shorter * _LINE)), max(_SMALLEST, round(shorter * _TEXT))
    rim = max(1, width // 4)
    boxes = [_whole_pixels(one.box, picture.size) for one in found]
    surest_last = list(zip(found, boxes, strict=True))[::-1]
    for one, box in surest_last:
        canvas.rectangle(_grown(box, rim), outline="black", width=width + 2 * rim)  # seen on bright pictures as well
        canvas.rectangle(box, outline=colours[one.label], width=width)
    for one, box in surest_last:  # last, so that no line runs through a text
        _draw_tag(canvas, f"{one.label} {one.score:.2f}", box, colours[one.label], text_size)


def drawn_paths(images: Sequence[str | Path], folder: Path) -> list[Path]:
    """Returns the file in `folder` for the drawing of each image: its name, numbered where another has the same.

    Raises UserError where a drawing would replace one of the images.
    """
    paths: list[Path] = []
    for image in map(Path, images):
        paths.append(next(path for path in _names(image, folder) if path not in paths))
    originals = {Path(image).resolve() for image in images}
    for path in paths:
        if path.resolve() in originals:
            raise UserError(f"{path} to draw to, one of the images", "another folder", "name one without the images")
    return paths


def make_folder(folder: Path) -> Path:
    """Makes the folder for drawings, and returns it. Raises UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} to draw to: {error}", "a folder that can be written", "name another") from error
    return folder


def write_drawing(image: str | Path, path: Path, found: Sequence[Detection], classes: Sequence[str]) -> None:
    """Writes an image file with its boxes to `path`. Raises UserError where that is impossible."""
    picture = _rgb(image)
    draw_boxes(picture, found, classes)
    # Pillow's defaults for JPEG would smear thin lines.
    options: dict[str, Any] = {} if path.suffix.lower() == ".png" else {"quality": 95, "subsampling": 0}
    try:
        picture.save(path, **options)
    except OSError as error:
        raise UserError(f"{path} to draw to: {error}", "a file that can be written", "mend its folder") from error


def _names(image: Path, folder: Path) -> Iterator[Path]:
    """Yields the names that a drawing may have, the plainest first."""
    suffix = "" if image.suffix.lower() in _KEPT else ".png"
    yield folder / f"{image.name}{suffix}"
    number = 2
    while True:
        yield folder / f"{image.stem}_{number}{image.suffix}{suffix}"
        number += 1


def _rgb(image: str | Path) -> Image.Image:
    """Returns an image file of any mode as an upright RGB picture."""
    with opened(image, str(image)) as file:
        pixels = read(file, 3, None, str(image))
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _whole_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the first and the last pixel that a box covers on each axis, inside a picture of `size`."""
    left, top = (min(max(round(at), 0), side - 1) for at, side in zip(box[:2], size, strict=True))
    right, bottom = (min(round(at), side) - 1 for at, side in zip(box[2:], size, strict=True))
    return left, top, max(left, right), max(top, bottom)


def _grown(box: tuple[int, int, int, int], pixels: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return left - pixels, top - pixels, right + pixels, bottom + pixels


def _draw_tag(
    canvas: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], colour: str, text_size: int
) -> None:
    """Draws a text on a filled tag above the box, or at the picture's edge where there is no room."""
    (width, height), font = canvas.im.size, _font(text_size)
    margin = max(1, text_size // 6)
    tag_width = round(canvas.textlength(text, font)) + 2 * margin
    tag_height = text_size + 2 * margin
    left = max(0, min(box[0], width - tag_width))
    top = max(0, min(box[1] - tag_height, height - tag_height))
    canvas.rectangle((left, top, left + tag_width - 1, top + tag_height - 1), fill=colour)
    canvas.text((left + margin, top + tag_height // 2), text, "black", font, anchor="lm")


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    """Returns Pillow's own font: it needs no file, and no search for one."""
    return ImageFont.load_default(size)
