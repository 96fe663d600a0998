"""Draws images with one object for the tests of boxes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 20


def write_image(path: Path, box: Sequence[float] = (10, 5, 30, 15), size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Draws a white rectangle on black."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = map(int, box)
    pixels[top:bottom, left:right] = 255
    Image.fromarray(pixels).save(path)
