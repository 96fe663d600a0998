"""Reads annotations in COCO's format: a json of images, categories and boxes for each split."""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from compress.config.data_settings import DataConfig
from compress.data.annotations import AnnotatedImage, AnnotatedSplit, find_layout, to_files, with_test
from compress.data.boxes import CROWD, OBJECT
from compress.data.image_folder import Files
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_ALIASES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_ROBOFLOW = "_annotations.coco.json"
_EXPECTED = "annotations/instances_train2017.json, annotations/train.json, train/_annotations.coco.json or train.json"


def coco(config: DataConfig, manifests: Path | None) -> tuple[dict[str, Files], list[str], list[str]]:
    """Reads a json for each split, in the layouts of COCO and of Roboflow, and the images that it lists.

    Without a test json, val serves as test; with train alone, `data.test_fraction` of its images does. Classes are in
    the order of train's category ids; a category without a box in any split is left out. Where the json of train has no
    annotation, train is unlabelled. Returns the splits, the class names and the digests. Raises UserError for a missing
    or broken file, and a class that train lacks.
    """
    root, files = find_layout(config, _jsons, _EXPECTED)
    splits, categories = {}, {}
    for split, path in with_test(files, root).items():
        content = _load(path)
        labelled = split != "train" or bool(content.get("annotations"))
        if labelled and "annotations" not in content:
            raise UserError(f"{path} without annotations", "boxes of the images", f"annotate the images of {split}")
        categories[split] = _categories(content, path) if labelled else {}
        images = _images(content, path, _folder(content, path, root), categories[split])
        splits[split] = AnnotatedSplit(path, images, labelled)
    source = "train" if splits["train"].labelled or "test" not in splits else "test"
    return to_files(config, root, splits, _used(categories[source], splits, root), manifests)


def _jsons(root: Path) -> dict[str, Path] | None:
    """Returns the json of each split in a folder; None where there is none of train."""
    found = {}
    for split, aliases in _ALIASES.items():
        paths = [path for alias in aliases for path in _candidates(root, alias)]
        if len(paths) > 1:
            names = ", ".join(path.relative_to(root).as_posix() for path in paths)
            raise UserError(f"{root} with {names}", f"one json of {split}", "move the others to another folder")
        if paths:
            found[split] = paths[0]
    return found if "train" in found else None


def _candidates(root: Path, alias: str) -> list[Path]:
    fixed = (root / "annotations" / f"{alias}.json", root / alias / _ROBOFLOW, root / f"{alias}.json")
    years = (f"instances_{alias}.json", f"instances_{alias}[0-9]*.json")
    return [path for path in fixed if path.is_file()] + [
        path for pattern in years for path in sorted((root / "annotations").glob(pattern))
    ]


def _load(path: Path) -> dict[str, Any]:
    """Returns the content of a json file. Raises UserError for anything but a dict with a list of images."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}", "a json file as COCO has it", "mend that file") from error
    for key in ("images", "annotations", "categories"):
        items = content.get(key, []) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{path} whose {key} are no list of dicts", "a json file as COCO has it", "mend that file")
    if "images" not in content:
        raise UserError(f"{path} with the keys {', '.join(content)}", "images among them", "mend that file")
    return content


def _categories(content: dict[str, Any], path: Path) -> dict[Any, str]:
    """Returns the name of each category id, in the order of the ids."""
    items = [(_key(item, "id", path), str(_key(item, "name", path))) for item in content.get("categories", [])]
    names: dict[Any, str] = dict(sorted(items, key=lambda item: (not isinstance(item[0], int), item[0])))
    if len(set(names.values())) < len(items):
        raise UserError(
            f"{path}: categories {', '.join(name for _, name in items[:10])}",
            "another id and another name for each",
            "mend the repeated one",
        )
    return names


def _used(categories: dict[Any, str], splits: dict[str, AnnotatedSplit], root: Path) -> list[str]:
    """Returns the names of the categories that some split has a box of."""
    found = set().union(*(split.names() for split in splits.values()))
    unused = [name for name in categories.values() if name not in found]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        log.info("%s: left out categories without a box in any split: %s%s", root, ", ".join(unused[:3]), more)
    return [name for name in categories.values() if name in found]


def _folder(content: dict[str, Any], path: Path, root: Path) -> Path:
    """Returns the folder that the file names of a json start from: the first one that has its first image."""
    if path.name == _ROBOFLOW or not content["images"]:
        return path.parent
    split = path.stem.removeprefix("instances_")
    folders = [root / split, root / "images" / split, root / "images", root]
    first = str(_key(content["images"][0], "file_name", path))
    found = next((folder for folder in folders if (folder / first).is_file()), None)
    if found is None:
        places = ", ".join(str(folder / first) for folder in folders[:3])
        raise UserError(
            f"{path} with the image {first}, which is missing", f"{places} or below {root}", "add the images"
        )
    return found


def _images(content: dict[str, Any], path: Path, folder: Path, categories: dict[Any, str]) -> list[AnnotatedImage]:
    objects: dict[Any, list[tuple[str, list[float], int]]] = defaultdict(list)
    for at, item in enumerate(content.get("annotations", [])):
        objects[_key(item, "image_id", path)].append(
            _object(item, f"{path}: annotation {item.get('id', at)}", categories)
        )
    images, ids = [], set()
    for item in content["images"]:
        image, number = folder / str(_key(item, "file_name", path)), _key(item, "id", path)
        if not image.is_file():
            raise UserError(
                f"{path} with {image}, which is missing", "the file of each image", "add it, or remove its entry"
            )
        if number in ids:
            raise UserError(f"{path}: two images with the id {number}", "an id for each", "mend the repeated one")
        ids.add(number)
        names, boxes, flags = zip(*objects[number], strict=True) if number in objects else ((), (), ())
        size = (item["width"], item["height"]) if "width" in item and "height" in item else None
        images.append(AnnotatedImage(image, path, size, names, boxes, flags))
    stray = next((number for number in objects if number not in ids), None)
    if stray is not None:
        raise UserError(f"{path}: an annotation of image_id {stray}", "an id among the images", "mend or remove it")
    return images


def _object(item: dict[str, Any], name: str, categories: dict[Any, str]) -> tuple[str, list[float], int]:
    """Returns the class, the box x1, y1, x2, y2 and the flag of an annotation."""
    given, category = item.get("bbox", ()), item.get("category_id")
    try:
        box = [float(value) for value in given]
    except (TypeError, ValueError):
        box = []
    if len(box) != 4 or not np.isfinite(box).all():
        raise UserError(
            f"{name}: bbox {given}", "[x, y, width, height], finite numbers in pixels", "mend or remove that box"
        )
    if not isinstance(category, (int, str)) or category not in categories:
        raise UserError(f"{name}: category_id {category}", "an id among the categories", "mend it, or add the category")
    left, top, width, height = box
    return categories[category], [left, top, left + width, top + height], CROWD if item.get("iscrowd") else OBJECT


def _key(item: dict[str, Any], key: str, path: Path) -> Any:
    if not isinstance(item.get(key), (int, str)):
        raise UserError(f"{path}: {key} {item.get(key)} in {str(item)[:80]}", f"{key} as COCO has it", "mend that file")
    return item[key]
