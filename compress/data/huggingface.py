"""Reads data sets that Hugging Face's `datasets` has saved to disk, image by image."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compress.config.data_settings import DataConfig
from compress.data.dataset import digest
from compress.data.defaults import square_of
from compress.data.image_folder import Files
from compress.data.manifest import manifest_of
from compress.data.targets import TARGETS
from compress.utils.errors import UserError
from compress.utils.files import file_sha256

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
_LABELS = ("label", "labels", "class", "target")


class StoredImage(NamedTuple):
    """An image in a row of a split on disk."""

    folder: str
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.folder}, row {self.row}"

    def open(self) -> io.BytesIO:
        """Returns the bytes of the image."""
        return io.BytesIO(_column(self.folder, self.column)[self.row][self.column]["bytes"])


class StoredImages(Sequence):
    """The images of a split, which stay on disk."""

    def __init__(self, folder: str, column: str, count: int):
        self._folder, self._column, self._count = folder, column, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: Any) -> Any:
        return StoredImage(self._folder, self._column, at)


def huggingface(config: DataConfig, manifests: Path | None) -> tuple[dict[str, Files], list[str], list[str]]:
    """Reads `data.root`, a folder that `DatasetDict.save_to_disk` wrote, with train, test and perhaps validation.

    The image column is the only one with images, the label column is called label or the like; `data.columns` names
    others. Returns the splits, the class names and a digest of each split. Raises UserError for what is missing.
    """
    stored = _stored(config)
    image, label = _columns(config, stored["train"].features)
    targets = TARGETS[config.task]
    labels = {split: targets.read(part[label][:], len(part), f"{split}: {label}") for split, part in stored.items()}
    names = {split: getattr(part.features[label], "names", None) for split, part in stored.items()}
    classes = targets.name(labels, names)
    files, digests = {}, []
    with manifest_of(Path(str(config.root)), manifests, read_digest) as manifest:
        for split, part in stored.items():
            folder = str(Path(part.cache_files[0]["filename"]).parent)
            _require_images(part, image, folder)
            contents = [row[0] for row in manifest.rows([file["filename"] for file in part.cache_files])]
            digests.append(digest(*contents, labels[split]))
            images = StoredImages(folder, image, len(part))
            own = torch.from_numpy(labels[split])
            files[split] = Files(images, own, square_of(config), config.workers, config.channels or 3)
    return files, classes, digests


def read_digest(path: str) -> tuple[str]:
    """Returns what a manifest keeps of a file: its digest."""
    return (file_sha256(path),)


def _stored(config: DataConfig) -> dict[str, Any]:
    """Returns the splits as `datasets` opens them, which reads no image."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "data=huggingface without the package datasets",
            "the extra huggingface",
            'pip install "compress[huggingface]"',
        ) from error
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(f"data.root={config.root}", "a folder that save_to_disk wrote", "set data.root=FOLDER")
    try:
        found = datasets.load_from_disk(config.root)
    except (FileNotFoundError, ValueError, OSError) as error:
        raise UserError(f"{config.root}: {error}", "a folder that save_to_disk wrote", "mend data.root") from error
    if not isinstance(found, datasets.DatasetDict):
        raise UserError(
            f"{config.root}, a data set without splits",
            "a DatasetDict with train and test",
            "save dataset.train_test_split(0.2) instead",
        )
    splits = {
        split: found[name] for split, names in _SPLITS.items() for name in names if name in found and len(found[name])
    }
    for split in ("train", "test"):
        if split not in splits:
            raise UserError(
                f"{config.root} with {', '.join(found)}",
                "splits called train and test (and validation)",
                f"add {split}",
            )
    return splits


def _columns(config: DataConfig, features: Any) -> tuple[str, str]:
    """Returns the names of the columns with the image and with the label."""
    import datasets

    chosen: dict[str, str] = {}
    for text in config.columns:
        kind, _, name = text.partition("=")
        if kind not in ("image", "label") or kind in chosen:
            raise UserError(f"data.columns with {text}", "image=NAME and label=NAME, each once", "mend that entry")
        chosen[kind] = name
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name in _LABELS if name in features]
    for kind, found in (("image", images), ("label", labels)):
        name = chosen.get(kind) or (found[0] if len(found) == 1 else "")
        if name not in (images if kind == "image" else features):
            raise UserError(
                f"{config.root} with the columns {', '.join(features)}",
                f"one column with the {kind}",
                f'name it: data.columns=["{kind}=NAME"]',
            )
        chosen[kind] = name
    return chosen["image"], chosen["label"]


def _require_images(part: Any, image: str, folder: str) -> None:
    """Raises UserError, with its row, for an image whose bytes are not in the data set."""
    import pyarrow.compute as pc

    stored = part.data.column(image)
    row = pc.index(pc.is_null(pc.struct_field(stored, "bytes")), True).as_py()
    if row >= 0:
        content = stored[row].as_py()
        raise UserError(
            f"{folder}, row {row}: " + (f"an image in another file, {content['path']}" if content else "no image"),
            "images whose bytes are in the data set",
            "save it from images that were loaded, or use data=csv with the paths" if content else "leave that row out",
        )


@cache
def _column(folder: str, column: str) -> Any:
    """Returns the images of a split as they are stored, each as a dict with its bytes."""
    import datasets

    return datasets.load_from_disk(folder).select_columns([column]).cast_column(column, datasets.Image(decode=False))
