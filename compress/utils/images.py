"""Prepares images for a network, by one rule for training, measuring and prediction. Needs no torch.

Pixels are uint8, or float32 from 0 to 255 where an image has more than 8 bits a channel.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from compress.utils.errors import UserError
from compress.utils.image_layout import one_image, scaled

_TURNS = {  # EXIF orientation -> what makes the stored image upright (Exif 2.32, table 6)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_UP_TO_16_BITS = ("PNG", "PPM")  # in these formats, mode I holds 16 bits
_GREY = ("1", "L", "LA", "La", "I", "F", *SIXTEEN_BITS)
_EXACT = 0.02  # a scaled value this close to a whole number was one: 0.5 / 255 in float16 is off by 0.012


# What Pillow raises for a file that holds no whole image.
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


@contextmanager
def opened(file: str | Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Opens an image file. Raises UserError, with `name`, where it cannot be read, now or in the context."""
    try:
        with Image.open(file) as image:
            yield image
    except UNREADABLE as error:
        raise UserError(f"{name}: {error}", "an image that can be decoded", "repair or remove that file") from error


@dataclass(frozen=True)
class Square:
    """How images become squares.

    crop: the shorter side is resized to `size` / `crop_share`, and the middle is kept; stretch: the whole image is
    resized to the square, whatever its proportions; pad: the longer side is resized to `size`, and black bars are added
    on both sides of the shorter one.
    """

    size: int  # pixels a side
    crop_share: float = 1.0
    interpolation: str = "bilinear"  # a name of PIL.Image.Resampling
    resize: str = "crop"


def center_crop(image: Image.Image, how: Square) -> Image.Image:
    """Returns the middle of a resized image, or all of it where `how.resize` says so, `how.size` pixels a side."""
    size, resampling = how.size, Image.Resampling[how.interpolation.upper()]
    if how.resize == "pad":
        return _padded(image, size, resampling)
    if how.resize == "stretch":
        return image if image.size == (size, size) else image.resize((size, size), resampling)
    shorter = math.floor(size / how.crop_share + 1e-6)  # as torchvision's and timm's evaluation do
    scale = shorter / min(image.size)
    resized = [max(shorter, round(side * scale)) for side in image.size]
    image = image if image.size == tuple(resized) else image.resize(resized, resampling)
    if image.size == (size, size):
        return image
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def _padded(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Returns the whole image in the middle of a black square of `size` pixels a side."""
    scale = size / max(image.size)
    width, height = (min(size, max(1, round(side * scale))) for side in image.size)
    resized = image if image.size == (width, height) else image.resize((width, height), resampling)
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(resized, ((size - width) // 2, (size - height) // 2))
    return canvas


def upright(image: Image.Image) -> Image.Image:
    """Returns the image as viewers show it, turned by its EXIF orientation."""
    image.load()  # Pillow turns a TIFF when it loads it, and a PNG may have its EXIF after the pixels
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = None if orientation is None else _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (width, height) of the image as `upright` would turn it, from its header where the format allows that."""
    if image.format == "TIFF":
        image.load()  # turns it
    width, height = image.size
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return (height, width) if orientation in _SIDEWAYS else (width, height)


def natural_channels(image: Image.Image) -> int:
    """Returns 1 for a grey image, with or without transparency, and 3 for any other."""
    return 1 if image.mode in _GREY else 3


def read(image: Image.Image, channels: int, how: Square | None, name: str) -> np.ndarray:
    """Returns the pixels (S, S, C) of a Pillow image of any mode, or (H, W, C) where `how` is None.

    Raises UserError, with `name`, for numbers without a known range, and for channels that the image does not have.
    """
    plain = _plain(upright(image), channels, name)
    if isinstance(plain, np.ndarray):
        plain = to_channels(plain, channels, name)
        return square(plain, how) if how else plain
    if how and plain.mode in ("L", "RGB"):
        return np.asarray(center_crop(plain, how)).reshape(how.size, how.size, channels)
    pixels = np.asarray(plain).reshape(plain.height, plain.width, channels)
    return square(pixels, how) if how else pixels


def square(pixels: np.ndarray, how: Square) -> np.ndarray:
    """Returns the `center_crop` (S, S, C) of an array (H, W) or (H, W, C) with any number of channels."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    pixels = as_bytes_if_exact(pixels)
    if pixels.shape[:2] == (how.size, how.size) and (how.resize != "crop" or how.crop_share == 1):
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(center_crop(Image.fromarray(pixels), how))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(pixels.shape[2])]
    return np.stack([np.asarray(center_crop(plane, how)) for plane in planes], axis=2)


def as_bytes_if_exact(pixels: np.ndarray) -> np.ndarray:
    """Returns floats that are all whole numbers as uint8; scaling uint8 / 255 back results in such floats."""
    if pixels.dtype == np.uint8:
        return pixels
    whole = np.rint(pixels)
    return whole.astype(np.uint8) if np.abs(pixels - whole).max(initial=0) <= _EXACT else pixels


def to_channels(pixels: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Converts pixels (H, W, C): grey is repeated for colour, colour becomes its luma (ITU-R BT.601)."""
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if found == 3 and channels == 1:
        if pixels.dtype == np.uint8:
            return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        return pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    raise UserError(
        f"{name} with {found} channels", f"{channels}, as the network reads them", "give an image with these channels"
    )


def preprocess(image: Image.Image | np.ndarray, described: dict[str, Any], name: str = "an image") -> np.ndarray:
    """Returns float32 (C, H, W) from any Pillow image or array, as `described`, model.json's `input`, says."""
    channels, size, _ = described["shape"]
    how = Square(  # older files have only the size
        size,
        described.get("crop_share", 1.0),
        described.get("interpolation", "bilinear"),
        described.get("resize", "crop"),
    )
    if isinstance(image, Image.Image):
        pixels = read(image, channels, how, name)
    else:
        pixels = scaled(one_image(image, name, channels), name)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        pixels = square(to_channels(as_bytes_if_exact(pixels), channels, name), how)
    pixels = pixels.astype(np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.asarray(described[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


def _plain(image: Image.Image, channels: int, name: str) -> Image.Image | np.ndarray:
    """Returns the image as L, RGB, LA or RGBA, or as pixels (H, W, 1) where it has more than 8 bits."""
    if image.mode in SIXTEEN_BITS or image.mode in ("I", "F"):
        return _deep(image, name)
    clear = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if image.mode == "P" and clear and channels != 4:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None or (channels == 2 and image.mode not in ("LA", "La")) or (channels == 4 and not clear):
        raise UserError(
            f"{name}, an image of mode {image.mode}",
            f"{channels} channels, as the network reads them",
            "give an array (H, W, C) of these channels",
        )
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:  # LAB, for one
        raise UserError(f"{name} of mode {image.mode}: {error}", "an image in grey or RGB", "convert it") from error


def _deep(image: Image.Image, name: str) -> np.ndarray:
    """Returns the pixels (H, W, 1) of an image with one channel of 16 or 32 bits, by the range of its numbers."""
    values = np.asarray(image)
    if image.mode in SIXTEEN_BITS:
        values = values.astype(np.uint16)
    elif image.mode == "I":
        low, high = int(values.min()), int(values.max())
        if image.format not in _UP_TO_16_BITS or low < 0 or high > 65535:
            raise UserError(
                f"{name} with 32-bit numbers from {low} to {high}",
                "8 or 16 bits a pixel: only then is it known which number is white",
                "save it anew by its range, as Image.fromarray((pixels / WHITE * 65535).astype('uint16')).save(FILE)",
            )
        values = values.astype(np.uint16)
    return scaled(values, name)[..., None]
