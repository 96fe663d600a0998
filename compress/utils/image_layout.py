"""Reads arrays of images in users' layouts: which axis is which, and which number is white. Needs no torch.

An ambiguous array is refused.
"""

import logging
from typing import Any

import numpy as np

from compress.utils.errors import UserError

log = logging.getLogger("compress")

_FEW = 4  # an axis this short is taken for the channels: grey, grey and alpha, RGB, RGBA


def to_numpy(values: Any) -> np.ndarray:
    """Returns an array from an array, a tensor on any device and of any dtype, or nested lists."""
    if hasattr(values, "detach"):  # a tensor; NumPy has no bfloat16
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)


def many_images(images: np.ndarray, name: str) -> np.ndarray:
    """Returns (N, H, W) or (N, H, W, C) from that, or from (N, C, H, W). Raises UserError for ambiguous axes."""
    if images.ndim == 3 and min(images.shape[1:]) > 0:
        return images
    if images.ndim != 4:
        raise UserError(
            f"{name} with images {images.shape}",
            "images (N, H, W), (N, H, W, C) or (N, C, H, W)",
            "reshape them, as images.reshape(-1, HEIGHT, WIDTH)",
        )
    first = _channels_first(images.shape[1:], f"{name} with images {images.shape}")
    return images.transpose(0, 2, 3, 1) if first else images


def one_image(image: np.ndarray, name: str, channels: int | None = None) -> np.ndarray:
    """Returns (H, W) or (H, W, C) from that, or from (C, H, W). Raises UserError for ambiguous axes.

    `channels`, where known, decides where the shape alone is ambiguous.
    """
    if image.ndim == 2:
        return image
    if image.ndim != 3:
        raise UserError(
            f"{name} of shape {image.shape}", "(H, W), (H, W, C) or (C, H, W)", "give it one of these shapes"
        )
    ends = (image.shape[0], image.shape[2])
    if channels in ends and ends.count(channels) == 1 and not set(ends) <= set(range(_FEW + 1)):
        first = ends[0] == channels
    else:
        first = _channels_first(image.shape, f"{name} of shape {image.shape}")
    return image.transpose(1, 2, 0) if first else image


def _channels_first(shape: tuple[int, ...], received: str) -> bool:
    """Returns whether (a, b, c) is (C, H, W), not (H, W, C): by the short axis, and by the two equal ones."""
    first, middle, last = shape
    votes = set()
    if (first <= _FEW) != (last <= _FEW):
        votes.add(first <= _FEW)
    if (first == middle) != (middle == last):
        votes.add(middle == last)
    if len(votes) != 1:
        raise UserError(
            received,
            f"an axis of at most {_FEW} channels, or images that are square, so that the axes can be told apart",
            "crop or pad the images to squares",
        )
    return votes.pop()


def scaled(images: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 as it is, and uint16 (65535 is white) and floats in [0, 1] as float32 from 0 to 255.

    Booleans become uint8, 0 and 255. Raises UserError for other numbers: which of them is white is unknown.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype == np.uint16:
        return images.astype(np.float32) / np.float32(257)  # 65535 / 255
    if images.dtype.kind not in "fiu":
        raise UserError(f"{name} with pixels of type {images.dtype}", "numbers", "give uint8 pixels")
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if images.dtype.kind == "f" and low >= 0 and high <= 1:  # neither holds for a NaN
        return images.astype(np.float32) * np.float32(255)
    raise UserError(
        f"{name} with {images.dtype} from {low:.6g} to {high:.6g}",
        "pixels that are uint8, uint16, or floats in [0, 1]",
        _mend(images.dtype.kind, low, high),
    )


def require_bits(images: np.ndarray, name: str) -> None:
    """Raises UserError where no pixel of a whole set of uint16 images needs more than 8 bits: white is then unknown."""
    if images.dtype == np.uint16 and images.size:
        require_sixteen_bits(int(images.max()), name, "give them as uint8, images.astype('uint8')")


def require_sixteen_bits(highest: int, name: str, mend: str) -> None:
    """Checks the highest value as `require_bits` does; warns where it is far from white, as with 12 bits."""
    if 0 < highest <= 255:
        raise UserError(
            f"{name}, 16-bit images with values up to {highest}",
            "images that use more than 8 bits: 65535 is white",
            mend,
        )
    if 0 < highest < 65535 // 4:
        log.warning("%s: values up to %d of 65535, which is white; data.mean and data.std have to fit", name, highest)


def _mend(kind: str, low: float, high: float) -> str:
    if low >= 0 and high <= 255:
        return "divide them by 255" if kind == "f" else "give them as uint8, images.astype('uint8')"
    if low >= 0 and high <= 65535 and kind != "f":
        return "give them as uint16, images.astype('uint16'), if 65535 is white"
    return (
        "give the images before they are normalised, as data.mean and data.std do that, or divide them by their range"
    )
