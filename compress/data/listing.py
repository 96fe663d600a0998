"""Lists the image files of a data set's folder, and reports the files that it skips."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from compress.data.file_facts import FileFacts
from compress.data.manifest import Manifest
from compress.utils.errors import UserError
from compress.utils.image_layout import require_sixteen_bits

log = logging.getLogger("compress")

# Formats that Pillow knows by name but does not decode by itself.
_NAMES_ONLY = {"BUFR", "EMF", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_SHOWN = 3


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


def images_below(folder: Path, skipped: SkippedFiles) -> list[str]:
    """Returns the image files below a folder, by name, and follows links.

    Raises UserError where there is none, and for links that lead nowhere.
    """
    suffixes = image_suffixes()
    found: list[str] = []
    others: list[str] = []
    for entry in _files_below(str(folder), skipped, frozenset()):
        is_image = os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file()
        (found if is_image else others).append(entry.path)
    _require_targets([Path(path) for path in others])
    skipped.others += map(Path, others)
    if not found:
        contents = f", with {', '.join(os.path.basename(path) for path in others[:_SHOWN])}" if others else ""
        raise UserError(
            f"{folder} without an image{contents}", "files that Pillow decodes, as .jpg and .png", "add images"
        )
    return found


def check_images(paths: Sequence[str], skipped: SkippedFiles, manifest: Manifest) -> list[FileFacts]:
    """Returns what is known of each image file of a split, and notes those with several frames as skipped.

    Raises UserError for a file that is no image or is cut off, and for one whose numbers have no known range.
    """
    facts = manifest.facts(paths)
    skipped.frames += [Path(path) for path, known in zip(paths, facts, strict=True) if known.has_frames]
    deep = [(path, known.highest) for path, known in zip(paths, facts, strict=True) if known.highest is not None]
    if deep:
        names = f"{deep[0][0]} and {len(deep) - 1} more"
        require_sixteen_bits(max(highest for _, highest in deep), names, "save them with 8 bits")
    return facts


def _files_below(folder: str, skipped: SkippedFiles, above: frozenset[str]) -> Iterator[os.DirEntry[str]]:
    """Yields the files below a folder, in the order in which their paths are sorted folder by folder."""
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it is in
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if _is_hidden(entry.name):
                skipped.hidden.append(Path(entry.path))
            elif entry.is_dir():
                yield from _files_below(entry.path, skipped, above | {place})
            else:
                yield entry


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _require_targets(paths: list[Path]) -> None:
    dangling = [path for path in paths if path.is_symlink() and not path.exists()]
    if dangling:
        names = ", ".join(map(str, dangling[:_SHOWN])) + (", ..." if len(dangling) > _SHOWN else "")
        raise UserError(
            f"{len(dangling)} links that lead nowhere: {names}", "links to files that exist", "mend or remove them"
        )
