"""Reads a folder in the layout of Pascal VOC: an xml file of boxes for each image, and lists of the splits."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from compress.config.data_settings import DataConfig
from compress.data.annotations import AnnotatedImage, AnnotatedSplit, find_layout, to_files, with_test
from compress.data.boxes import DIFFICULT, OBJECT
from compress.data.image_folder import Files
from compress.data.listing import SkippedFiles, images_below
from compress.utils.errors import UserError

_IMAGES, _ANNOTATIONS = ("jpegimages", "images"), "annotations"
_LISTS = ("train", "val", "test", "trainval")
_EXPECTED = "folders JPEGImages and Annotations, as Pascal VOC has them"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc(config: DataConfig, manifests: Path | None) -> tuple[dict[str, Files], list[str], list[str]]:
    """Reads `JPEGImages/ID.jpg` and `Annotations/ID.xml`, split by `ImageSets/Main/{train,val,test,trainval}.txt`.

    Without a test list, val serves as test; without lists, `data.test_fraction` of the images does. Coordinates are
    used as they are. Where no image of train has an xml, train is unlabelled. Returns the splits, the sorted class
    names and the digests. Raises UserError for a missing or broken file, and a class that train lacks.
    """
    root, (images, annotations) = find_layout(config, _folders, _EXPECTED)
    skipped = SkippedFiles()
    paths = _by_id([Path(path) for path in images_below(images, skipped)], images)
    skipped.log(root)
    xmls = _by_id([path for path in sorted(annotations.rglob("*.xml")) if path.name[0] != "."], annotations)
    lists = _split_lists(root) or {"train": (annotations, sorted({*paths, *xmls}))}
    splits = {
        name: _read_split(source, ids, paths, xmls, name == "train")
        for name, (source, ids) in with_test(lists, root).items()
    }
    classes = sorted(splits["train" if splits["train"].labelled or "test" not in splits else "test"].names())
    return to_files(config, root, splits, classes, manifests)


def _folders(root: Path) -> tuple[Path, Path] | None:
    """Returns the folders of images and of annotations in a folder; None where one of them is missing."""
    found = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    images = next((found[name] for name in _IMAGES if name in found), None)
    annotations = found.get(_ANNOTATIONS)
    return None if images is None or annotations is None else (images, annotations)


def _by_id(files: list[Path], folder: Path) -> dict[str, Path]:
    """Returns the files by their path in `folder` without suffix. Raises UserError where two have the same."""
    found: dict[str, Path] = {}
    for path in files:
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{found[key]} and {path}", "one file of each name", "remove or rename one of them")
        found[key] = path
    return found


def _split_lists(root: Path) -> dict[str, tuple[Path, list[str]]]:
    """Returns each split's list and the names of its images; nothing where there are no lists."""
    folder = root / "ImageSets" / "Main"
    files = {name: folder / f"{name}.txt" for name in _LISTS if (folder / f"{name}.txt").is_file()}
    lists = {name: (path, [line.split()[0] for line in _lines(path)]) for name, path in files.items()}
    both = lists.pop("trainval", None)
    if both is not None and "train" not in lists:
        lists = {"train": both} | lists
    if lists and "train" not in lists:
        raise UserError(
            f"{folder} with {', '.join(f'{name}.txt' for name in lists)}", "train.txt or trainval.txt", "add that list"
        )
    return lists


def _read_split(
    source: Path, ids: list[str], paths: dict[str, Path], xmls: dict[str, Path], may_be_unlabelled: bool
) -> AnnotatedSplit:
    """Returns the images `ids` that `source` lists. Raises UserError for a missing image or xml."""
    labelled = not may_be_unlabelled or not ids or any(key in xmls for key in ids)
    images = []
    for key in ids:
        if key not in paths:
            received = f"{xmls.get(key, key)} in {source}, without an image"
            raise UserError(received, f"an image file called {key}", "add it, or remove that entry")
        if labelled and key not in xmls:
            received = f"{paths[key]} in {source}, without {key}.xml"
            raise UserError(received, "an annotation of each image", "add it, or remove that entry")
        images.append(_read(paths[key], xmls[key]) if labelled else AnnotatedImage(paths[key], source))
    return AnnotatedSplit(source, images, labelled)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}", "a list of images in UTF-8", "mend that file") from error


def _read(image: Path, xml: Path) -> AnnotatedImage:
    """Returns an image with the objects of its xml file."""
    try:
        tree = ElementTree.parse(xml).getroot()
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
        raise UserError(f"{xml}: {error}", "an xml file as Pascal VOC has it", "mend that file") from error
    objects = tree.findall("object")
    boxes = [_box(item, f"{xml}: object {at}") for at, item in enumerate(objects, 1)]
    names = [(item.findtext("name") or "").strip() for item in objects]
    if "" in names:
        raise UserError(f"{xml}: object {names.index('') + 1} without a name", "the name of a class", "add it")
    flags = [DIFFICULT if (item.findtext("difficult") or "").strip() == "1" else OBJECT for item in objects]
    return AnnotatedImage(image, xml, _size(tree, xml), names, boxes, flags)


def _size(tree: ElementTree.Element, xml: Path) -> tuple[int, int] | None:
    """Returns (width, height) as annotated; None where the file has no size."""
    texts = [tree.findtext(f"size/{side}") for side in ("width", "height")]
    if None in texts:
        return None
    try:
        width, height = (int(float(text or "")) for text in texts)
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{xml}: size {' x '.join(map(str, texts))}", "width and height in pixels", "mend it"
        ) from error
    return width, height


def _box(item: ElementTree.Element, name: str) -> list[float]:
    """Returns x1, y1, x2, y2 of an object."""
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        box = [float(text or "") for text in texts]
    except ValueError:
        box = [np.nan]
    if not np.isfinite(box).all():
        found = ", ".join(f"{corner} {text}" for corner, text in zip(_CORNERS, texts, strict=True))
        raise UserError(f"{name}: {found}", "four finite numbers, in pixels", "mend or remove that box")
    return box
