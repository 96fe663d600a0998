"""Turns annotated images of any format into a detection data set: boxes are checked, clipped and scaled by one rule."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from compress.config.data_settings import DataConfig
from compress.data.boxes import BOX, CLASS, pad_boxes, rarest_class
from compress.data.dataset import NO_LABEL, digest, stratified_split
from compress.data.defaults import square_of
from compress.data.file_facts import FileFacts
from compress.data.image_folder import Files
from compress.data.labels import warn_of_missing_classes
from compress.data.listing import SkippedFiles, check_images, folders_in, image_suffixes
from compress.data.manifest import manifest_of
from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean

log = logging.getLogger("compress")

_SHOWN = 3
_TEST_SEED = 0  # fixed: a test split that changed with the seed would hold images that other teachers were trained on
_LEAST_SIDE = 1  # pixels of the image file
_Split = TypeVar("_Split")
_Layout = TypeVar("_Layout")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and its objects, in pixels of that file."""

    path: Path
    source: Path  # its annotation file
    size: tuple[int, int] | None = None  # (width, height) in that file; None where it has none
    names: Sequence[str] = ()  # the class of each object
    boxes: Sequence[Sequence[float]] = ()  # x1, y1, x2, y2 of each
    flags: Sequence[int] = ()  # of compress.data.boxes


@dataclass(frozen=True)
class AnnotatedSplit:
    """The images of a split."""

    source: Path  # what lists them
    images: list[AnnotatedImage]
    labelled: bool = True

    def names(self) -> set[str]:
        """Returns the classes of all objects."""
        return {name for image in self.images for name in image.names}


@dataclass
class _Mended:
    """The boxes that were changed or left out; `log` reports them."""

    clipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def log(self, root: Path) -> None:
        for boxes, what in (
            (self.clipped, "boxes partly outside their image, clipped: %d"),
            (self.dropped, "boxes outside their image, or less than a pixel wide or high, left out: %d"),
        ):
            if boxes:
                more = "; ..." if len(boxes) > _SHOWN else ""
                log.warning(f"{root}: {what} (%s%s)", len(boxes), "; ".join(boxes[:_SHOWN]), more)


def find_layout(config: DataConfig, layout: Callable[[Path], _Layout | None], expected: str) -> tuple[Path, _Layout]:
    """Returns data.root, or the only folder one or two levels below it, whose `layout` is not None, and that layout.

    Raises UserError where there is no such folder, or several.
    """
    if config.task != "detection":
        received = f"data={config.name} with data.task={config.task}"
        raise UserError(received, "detection: its images have boxes", "set data.task=detection")
    root = Path(config.root) if config.root else None
    if root is None or not root.is_dir():
        raise UserError(f"data.root={config.root}", "a folder that exists", "set data.root=FOLDER")
    candidates = [root]
    for _ in range(3):
        found = [(path, files) for path in candidates if (files := layout(path)) is not None]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path) for path, _ in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            raise UserError(f"{root} with {len(found)} data sets: {names}", "one", f"set data.root={found[0][0]}")
        candidates = [inner for folder in candidates for inner in folders_in(folder, SkippedFiles())]
    contents = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
    raise UserError(f"{root} with {contents}", expected, "set data.root to the folder that holds them")


def with_test(splits: dict[str, _Split], root: Path) -> dict[str, _Split]:
    """Returns the splits, with val as test where there is no test: validation is then held out of train."""
    if "test" in splits or "val" not in splits:
        return splits
    log.info("%s: no annotated test split: val serves as test, and validation is held out of train", root)
    return {"train": splits["train"], "test": splits["val"]}


def to_files(
    config: DataConfig, root: Path, splits: dict[str, AnnotatedSplit], classes: list[str], manifests: Path | None
) -> tuple[dict[str, Files], list[str], list[str]]:
    """Returns the splits with targets (N, M, 6), the class names and the digests of each split's images and boxes.

    Without a test split, `data.test_fraction` of train becomes one, whatever the seed of the run. `manifests` is the
    folder that remembers which files were read before, if there is one. Raises UserError for
    an image of another size than annotated, a class that is not in `classes`, and a split without a box.
    """
    _require_apart(splits)
    _require_boxes(splits, classes)
    skipped, mended = SkippedFiles(), _Mended()
    files, digests = {}, []
    with manifest_of(root, manifests) as manifest:
        for name, split in splits.items():
            facts = check_images([str(image.path) for image in split.images], skipped, manifest)
            files[name], found = _to_files(config, split, root, classes, facts, mended)
            digests.append(found)
    skipped.log(root)
    mended.log(root)
    _log_unlisted(splits, root)
    if "test" not in files:
        files, positions = _draw_test(config, files["train"], root)
        digests.append(positions)
    warn_of_missing_classes(files["train"].labels[..., CLASS].flatten().long().numpy(), classes)
    return files, classes, digests


def _to_files(
    config: DataConfig,
    split: AnnotatedSplit,
    root: Path,
    classes: list[str],
    facts: list[FileFacts],
    mended: _Mended,
) -> tuple[Files, str]:
    """Returns the images of a split with their targets, and a digest of both."""
    parts: list[np.ndarray | str] = []
    square, rows = square_of(config), []
    for image, known in zip(split.images, facts, strict=True):
        size = (known.width, known.height)
        parts += [image.path.relative_to(root).as_posix(), known.digest]
        rows.append(_to_rows(image, size, classes, mended) * _scale(square.size, size))
    labels = pad_boxes(rows) if split.labelled else torch.full((len(facts), 1, 6), float(NO_LABEL))
    paths = [image.path for image in split.images]
    return Files(paths, labels, square, config.workers, config.channels or 3), digest(*parts, labels.numpy())


def _to_rows(image: AnnotatedImage, size: tuple[int, int], classes: list[str], mended: _Mended) -> np.ndarray:
    """Returns the targets (n, 6) of an image of `size` (width, height), in pixels of its file."""
    if image.size not in (None, size):
        raise UserError(
            f"{image.path}, {size[0]}x{size[1]} pixels upright (width x height)",
            f"{image.size[0]}x{image.size[1]}, as {image.source} has it",
            "annotate the image as it is now, turned by its EXIF orientation, or restore the one that was annotated",
        )
    boxes = np.array(image.boxes, float).reshape(-1, 4)
    clipped = boxes.clip(0, [*size, *size])
    sides = clipped[:, 2:] - clipped[:, :2]
    rows = []
    for at, (name, flag) in enumerate(zip(image.names, image.flags, strict=True)):
        shown = f"{image.source.name}: [{', '.join(f'{value:g}' for value in boxes[at])}] of {name}"
        if sides[at].min() < _LEAST_SIDE:
            mended.dropped.append(shown)
            continue
        if (clipped[at] != boxes[at]).any():
            mended.clipped.append(shown)
        rows.append([classes.index(name), *clipped[at], flag])
    return np.array(rows, float).reshape(-1, 6)


def _scale(target: int, size: tuple[int, int]) -> np.ndarray:
    """Returns the factors (6,) that scale the box of a target from an image of `size` to the network's."""
    factors = np.ones(6)  # float64: rounded once, a box keeps to the border of its image
    factors[BOX] = np.divide(target, [*size, *size])
    return factors


def _draw_test(config: DataConfig, train: Files, root: Path) -> tuple[dict[str, Files], str]:
    kept, drawn = stratified_split(rarest_class(train.labels), config.test_fraction, _TEST_SEED)
    log.info("%s: no test or val split: %d of %d images become the test split", root, len(drawn), len(train.paths))
    files = {name: train.part(positions) for name, positions in (("train", kept), ("test", drawn))}
    return files, digest(drawn.numpy())


def _require_apart(splits: dict[str, AnnotatedSplit]) -> None:
    """Raises UserError for an image in two splits, or twice in one: figures on it would be too good."""
    seen: dict[Path, Path] = {}
    for split in splits.values():
        for image in split.images:
            if image.path in seen:
                raise UserError(
                    f"{image.path} in {seen[image.path]} and in {split.source}",
                    "each image once, in one split",
                    "remove it from one of them",
                )
            seen[image.path] = split.source


def _require_boxes(splits: dict[str, AnnotatedSplit], classes: list[str]) -> None:
    """Raises UserError for a split without a box, and for a class that train lacks; train may be unlabelled."""
    for name, split in splits.items():
        if split.images and split.labelled and not split.names():
            raise UserError(f"{split.source}: no box in {name}", "at least one", "annotate images of that split")
        for image in split.images:
            strange = next((found for found in image.names if found not in classes), None)
            if strange is not None:
                raise UserError(
                    f"{image.source}: class {strange} in {name}",
                    f"one of train's: {', '.join(classes[:10])}",
                    f"{did_you_mean(strange, classes)}add it to train, or remove it",
                )


def _log_unlisted(splits: dict[str, AnnotatedSplit], root: Path) -> None:
    listed, suffixes = {image.path for split in splits.values() for image in split.images}, image_suffixes()
    files = (path for folder in sorted({path.parent for path in listed}) for path in sorted(folder.iterdir()))
    others = [path for path in files if path.suffix.lower() in suffixes and path.name[0] != "." and path not in listed]
    if others:
        names = ", ".join(path.relative_to(root).as_posix() for path in others[:_SHOWN])
        log.info("%s: %d images are in no split (%s%s)", root, len(others), names, ", ..." if others[_SHOWN:] else "")
