"""From an image to what the network reads: one rule for training, measuring and prediction. Needs Pillow alone."""

from typing import Any

import numpy as np
from PIL import Image


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` pixels, then the middle."""
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def network_input(image: Image.Image, described: dict[str, Any]) -> np.ndarray:
    """float32 (C, H, W) of any image, as model.json's `input` describes it."""
    channels, size, _ = described["shape"]
    pixels = np.asarray(middle_square(image.convert("L" if channels == 1 else "RGB"), size), np.float32)
    pixels = pixels.reshape(size, size, channels).transpose(2, 0, 1) / 255
    mean, std = (np.asarray(described[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std
