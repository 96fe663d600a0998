"""Reads an image file once, to its last byte, and returns what a data set has to know of it."""

import io
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from compress.utils.errors import UserError
from compress.utils.images import SIXTEEN_BITS, opened, read, upright_size

_NOT_ONE_PICTURE = ("MPO", "ICO", "ICNS")  # phones' files hold previews behind the photo, and icons hold several sizes
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # a file that is cut off lacks it
_TAIL_BYTES = 1024  # searched for it: some cameras and editors write something after it


class FileFacts(NamedTuple):
    """What is known of the content of an image file."""

    digest: str  # SHA-256 of its bytes
    width: int  # pixels, upright
    height: int
    has_frames: bool  # several, of which only the first is read
    highest: int | None  # value of an image with 16 bits a pixel; None with another number of bits


def read_facts(path: str) -> FileFacts:
    """Reads an image file. Raises UserError for one that is no image, is cut off, or has numbers of no known range."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "a file that can be read", "mend its permissions") from error
    return facts_of(content, path)


def facts_of(content: bytes, name: str) -> FileFacts:
    """Returns what is known of the content of an image file. Raises UserError as `read_facts` does."""
    if not content:
        raise UserError(f"{name}, 0 bytes", "an image", "repair or remove that file")
    highest = None
    with opened(io.BytesIO(content), name) as image:
        if image.mode in ("I", "F"):
            read(image, 1, None, name)
        elif image.mode in SIXTEEN_BITS:
            highest = int(np.asarray(image).max())
        if _ENDS.get(image.format or "", b"") not in content[-_TAIL_BYTES:]:
            image.load()  # raises where the file is cut off, which is likely
        has_frames = image.format not in _NOT_ONE_PICTURE and getattr(image, "is_animated", False)
        width, height = upright_size(image)
    return FileFacts(sha256(content).hexdigest(), width, height, has_frames, highest)
