"""Which files of a data set's folder are images, and which are left out."""

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
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # what whole files of these formats end with
_TAIL_BYTES = 1024  # where that stands, as some cameras and editors write something behind it
_SHOWN = 3
_SAMPLE = 64  # 16-bit images of a split that are looked at


def image_suffixes() -> set[str]:
    """The suffixes of the files that Pillow decodes, in small letters."""
    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NAMES_ONLY}


@dataclass
class LeftOut:
    """What of a folder is not read; `log` says it once."""

    others: list[Path] = field(default_factory=list)  # no images by their suffix, or where no class is
    hidden: list[Path] = field(default_factory=list)
    frames: list[Path] = field(default_factory=list)  # with several frames, of which the first is read

    def log(self, root: Path) -> None:
        for paths, what in (
            (self.others, "left out %d that are no images of a split or class"),
            (self.hidden, "left out %d that are hidden"),
            (self.frames, "read the first frame of %d that have several"),
        ):
            if paths:
                names = ", ".join(path.relative_to(root).as_posix() for path in paths[:_SHOWN])
                log.warning(f"data.root: {what} (%s%s)", len(paths), names, ", ..." if len(paths) > _SHOWN else "")


def folders_in(folder: Path, left_out: LeftOut) -> list[Path]:
    """The folders in a folder, by name, without hidden ones; its files are noted. Raises UserError for a dead link."""
    entries = sorted(folder.iterdir())
    _require_targets(entries)
    shown = [path for path in entries if not _is_hidden(path.name)]
    left_out.hidden += [path for path in entries if _is_hidden(path.name)]
    left_out.others += [path for path in shown if not path.is_dir()]
    return [path for path in shown if path.is_dir()]


def images_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """The image files below a folder, links followed.

    Raises UserError where there is none, where one is empty, and for links that lead nowhere.
    """
    files = sorted(_files_below(folder, left_out, set()))
    _require_targets(files)
    suffixes = image_suffixes()
    found = [path for path in files if path.suffix.lower() in suffixes and path.is_file()]
    others = [path for path in files if path.suffix.lower() not in suffixes or not path.is_file()]
    left_out.others += others
    if not found:
        beside = f", with {', '.join(path.name for path in others[:_SHOWN])}" if others else ""
        raise UserError(
            f"{folder} without an image{beside}", "files that Pillow decodes, as .jpg and .png", "add images"
        )
    empty = next((path for path in found if path.stat().st_size == 0), None)
    if empty:
        raise UserError(f"{empty}, 0 bytes", "an image", "repair or remove that file")
    return found


def look_into(paths: list[Path], left_out: LeftOut) -> Iterator[bytes]:
    """The content of each image file, once its head has been read.

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
                image.load()  # cut off, as a rule
            if image.format not in _NOT_ONE_PICTURE and getattr(image, "is_animated", False):
                left_out.frames.append(path)
        yield content
    _require_sixteen_bits(deep)


def _require_sixteen_bits(paths: list[Path]) -> None:
    """`require_sixteen_bits` of the highest value in some of the images."""
    some = paths[:: max(1, len(paths) // _SAMPLE)]
    highest = 0
    for path in some:
        with opened(path, str(path)) as image:
            highest = max(highest, int(np.asarray(image).max()))
    if some:
        require_sixteen_bits(highest, f"{some[0]} and {len(paths) - 1} more", "save them with 8 bits")


def _files_below(folder: Path, left_out: LeftOut, above: set[str]) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it is in
        return
    for path in folder.iterdir():
        if _is_hidden(path.name):
            left_out.hidden.append(path)
        elif path.is_dir():
            yield from _files_below(path, left_out, above | {place})
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
