"""From an image to what the network reads: one rule for training, measuring and prediction. Needs Pillow alone."""

import math
from typing import Any

import numpy as np
from PIL import Image


def middle_square(
    image: Image.Image, size: int, crop_share: float = 1.0, interpolation: str = "bilinear"
) -> Image.Image:
    """The shorter side resized to `size` / `crop_share` pixels, then the middle `size` pixels a side."""
    shorter = math.floor(size / crop_share + 1e-6)  # as torchvision's and timm's evaluation do
    scale = shorter / min(image.size)
    resampling = Image.Resampling[interpolation.upper()]
    image = image.resize([max(shorter, round(side * scale)) for side in image.size], resampling)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def network_input(image: Image.Image, described: dict[str, Any]) -> np.ndarray:
    """float32 (C, H, W) of any image, as model.json's `input` describes it."""
    channels, size, _ = described["shape"]
    how = described.get("crop_share", 1.0), described.get("interpolation", "bilinear")  # not in older files
    pixels = np.asarray(middle_square(image.convert("L" if channels == 1 else "RGB"), size, *how), np.float32)
    pixels = pixels.reshape(size, size, channels).transpose(2, 0, 1) / 255
    mean, std = (np.asarray(described[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std
