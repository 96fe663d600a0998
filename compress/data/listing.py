"""Lists the image files of a data set's folder, and reports the files that it skips."""

import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from compress.utils.errors import UserError
from compress.utils.image_layout import require_sixteen_bits
from compress.utils.images import SIXTEEN_BITS, opened, read

log = logging.getLogger("compress")

# Formats that Pillow knows by name but does not decode by itself.
_NAMES_ONLY = {"BUFR", "EMF", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_NOT_ONE_PICTURE = ("MPO", "ICO", "ICNS")  # phones' files hold previews behind the photo, and icons hold several sizes
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # a file that is cut off lacks it
_TAIL_BYTES = 1024  # searched for it: some cameras and editors write something after it
_SHOWN = 3
_SAMPLE = 64  # 16-bit images of a split whose values are checked


def image_suffixes() -> set[str]:
    """Returns the suffixes of the files that Pillow decodes, in small letters."""
    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NAMES_ONLY}


@dataclass
class SkippedFiles:
    """The files of a folder that are not read, or not completely; `log` reports them."""

    others: list[Path] = field(default_factory=list)  # not an image by the suffix, or not in the folder of a class
    hidden: list[Path] = field(default_factory=list)
    frames: list[Path] = field(default_factory=list)  # with several frames, of which only the first is read

    def log(self, root: Path) -> None:
        for paths, what in (
            (self.others, "left out %d that are no images of a split or class"),
            (self.hidden, "left out %d that are hidden"),
            (self.frames, "read the first frame of %d that have several"),
        ):
            if paths:
                names = ", ".join(path.relative_to(root).as_posix() for path in paths[:_SHOWN])
                log.warning(f"data.root: {what} (%s%s)", len(paths), names, ", ..." if len(paths) > _SHOWN else "")


def folders_in(folder: Path, skipped: SkippedFiles) -> list[Path]:
    """Returns the folders in a folder, by name, and notes all else as skipped. Raises UserError for a dead link."""
    entries = sorted(folder.iterdir())
    _require_targets(entries)
    visible = [path for path in entries if not _is_hidden(path.name)]
    skipped.hidden += [path for path in entries if _is_hidden(path.name)]
    skipped.others += [path for path in visible if not path.is_dir()]
    return [path for path in visible if path.is_dir()]


def images_below(folder: Path, skipped: SkippedFiles) -> list[Path]:
    """Returns the image files below a folder, and follows links.

    Raises UserError where there is none, where one is empty, and for links that lead nowhere.
    """
    files = sorted(_files_below(folder, skipped, set()))
    _require_targets(files)
    suffixes = image_suffixes()
    found = [path for path in files if path.suffix.lower() in suffixes and path.is_file()]
    others = [path for path in files if path.suffix.lower() not in suffixes or not path.is_file()]
    skipped.others += others
    if not found:
        contents = f", with {', '.join(path.name for path in others[:_SHOWN])}" if others else ""
        raise UserError(
            f"{folder} without an image{contents}", "files that Pillow decodes, as .jpg and .png", "add images"
        )
    empty = next((path for path in found if path.stat().st_size == 0), None)
    if empty:
        raise UserError(f"{empty}, 0 bytes", "an image", "repair or remove that file")
    return found


def read_images(paths: list[Path], skipped: SkippedFiles) -> Iterator[bytes]:
    """Yields the content of each image file, after reading its header.

    Raises UserError for a file that is no image or is cut off, and for one whose numbers have no known range.
    """
    deep = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}", "a file that can be read", "mend its permissions") from error
        with opened(io.BytesIO(content), str(path)) as image:
            if image.mode in ("I", "F"):
                read(image, 1, None, str(path))
            elif image.mode in SIXTEEN_BITS:
                deep.append(path)
            if _ENDS.get(image.format or "", b"") not in content[-_TAIL_BYTES:]:
                image.load()  # raises where the file is cut off, which is likely
            if image.format not in _NOT_ONE_PICTURE and getattr(image, "is_animated", False):
                skipped.frames.append(path)
        yield content
    _require_sixteen_bits(deep)


def _require_sixteen_bits(paths: list[Path]) -> None:
    """Applies `require_sixteen_bits` to the highest value in some of the images."""
    some = paths[:: max(1, len(paths) // _SAMPLE)]
    highest = 0
    for path in some:
        with opened(path, str(path)) as image:
            highest = max(highest, int(np.asarray(image).max()))
    if some:
        require_sixteen_bits(highest, f"{some[0]} and {len(paths) - 1} more", "save them with 8 bits")


def _files_below(folder: Path, skipped: SkippedFiles, above: set[str]) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it is in
        return
    for path in folder.iterdir():
        if _is_hidden(path.name):
            skipped.hidden.append(path)
        elif path.is_dir():
            yield from _files_below(path, skipped, above | {place})
        else:
            yield path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _require_targets(paths: list[Path]) -> None:
    dangling = [path for path in paths if path.is_symlink() and not path.exists()]
    if dangling:
        names = ", ".join(map(str, dangling[:_SHOWN])) + (", ..." if len(dangling) > _SHOWN else "")
        raise UserError(
            f"{len(dangling)} links that lead nowhere: {names}", "links to files that exist", "mend or remove them"
        )
