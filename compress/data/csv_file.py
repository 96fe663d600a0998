"""Reads images from a CSV file: a path and labels a row, perhaps the split, and the patient or another group."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.config.data_settings import DataConfig
from compress.data.dataset import digest, stratified_split
from compress.data.defaults import square_of
from compress.data.groups import shared_group, split_by_group
from compress.data.image_folder import Files, digest_files
from compress.data.listing import SkippedFiles
from compress.data.manifest import manifest_of
from compress.data.table import Columns, Table, find_columns, read_table
from compress.data.targets import TARGETS
from compress.utils.errors import UserError

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_BETWEEN_LABELS = "|"


@dataclass(frozen=True)
class _Rows:
    """The images of a split; `groups` is None where the table has no such column."""

    paths: list[str]
    labels: list[list[str]]
    groups: list[str] | None
    where: list[str]  # the places of the rows, for errors

    def part(self, positions: Sequence[int]) -> "_Rows":
        """Returns the images at `positions` alone."""
        pick = lambda values: [values[at] for at in positions]
        return _Rows(
            pick(self.paths), pick(self.labels), None if self.groups is None else pick(self.groups), pick(self.where)
        )


def csv_file(config: DataConfig, manifests: Path | None) -> tuple[dict[str, Files], list[str], list[str]]:
    """Reads `data.root`: a CSV file, or a folder with train.csv, test.csv and perhaps val.csv.

    Paths are relative to `data.images`, else to the file's folder. Without splits, `data.test_fraction` of the images
    is the test split, the same ones for each seed. With data.task=multilabel the labels of a row stand in one column,
    with | between them, or are columns of 0 and 1. Returns the splits, the class names and a digest of each split.
    Raises UserError, with the line, for a row that cannot be used, and for a group in two splits.
    """
    splits, names = _read_splits(config)
    _check_paths(splits)
    targets, classes = _targets(config, splits, names)
    if "test" not in splits:
        _hold_out_test(config, splits, targets)
    groups = _numbered_groups(splits)
    folder, skipped, files, digests = Path(_images_folder(config)), SkippedFiles(), {}, []
    with manifest_of(folder, manifests) as manifest:
        for split, rows in splits.items():
            own = groups.get(split)
            numbers = np.zeros(0) if own is None else own.numpy()
            digests.append(digest(digest_files(rows.paths, skipped, manifest), targets[split], numbers))
            labels = torch.from_numpy(targets[split])
            files[split] = Files(
                rows.paths, labels, square_of(config), config.workers, config.channels or 3, groups=own
            )
    skipped.log(folder)
    return files, classes, digests


def _read_splits(config: DataConfig) -> tuple[dict[str, _Rows], list[str] | None]:
    """Returns the rows of each split, and the names of the labels where each has a column.

    All rows are of train where the table has no column for the split.
    """
    root = Path(config.root) if config.root else None
    if root is None or not root.exists():
        raise UserError(
            f"data.root={config.root}", "a CSV file, or a folder with train.csv and test.csv", "set data.root=FILE.csv"
        )
    several = config.task == "multilabel"
    if root.is_file():
        table = read_table(root)
        columns = find_columns(table, config.columns, several)
        rows = _rows(table, columns, _images_folder(config))
        return _by_split(table, columns, rows), _label_names(table, columns)
    tables = {split: read_table(file) for split in _SPLITS if (file := root / f"{split}.csv").is_file()}
    for split in ("train", "test"):
        if split not in tables:
            raise UserError(f"{root} without {split}.csv", "train.csv and test.csv (and val.csv)", "add that file")
    found = {split: find_columns(table, config.columns, several) for split, table in tables.items()}
    names = {split: _label_names(table, found[split]) for split, table in tables.items()}
    odd = next((split for split, own in names.items() if own != names["train"]), None)
    if odd is not None:
        raise UserError(
            f"{tables[odd].file} with the labels {names[odd]}", f"those of train: {names['train']}", "mend its header"
        )
    folder = _images_folder(config)
    return {split: _rows(table, found[split], folder) for split, table in tables.items()}, names["train"]


def _images_folder(config: DataConfig) -> str:
    root = Path(str(config.root))
    return str(config.images or (root.parent if root.is_file() else root))


def _rows(table: Table, columns: Columns, folder: str) -> _Rows:
    empty = next((at for at, row in enumerate(table.rows) if not row[columns.image]), None)
    if empty is not None:
        raise UserError(f"{table.where(empty)}: no path", "the path of an image", "add it, or remove that line")
    groups = None
    if columns.group is not None:
        groups = [row[columns.group] for row in table.rows]
        unknown = next((at for at, group in enumerate(groups) if not group), None)
        if unknown is not None:
            raise UserError(
                f"{table.where(unknown)}: nothing under {table.header[columns.group]}",
                "the group of the image: without it, one patient could be in two splits",
                "add it",
            )
    return _Rows(
        [os.path.join(folder, row[columns.image]) for row in table.rows],
        [[row[at] for at in columns.labels] for row in table.rows],
        groups,
        [table.where(at) for at in range(len(table.rows))],
    )


def _label_names(table: Table, columns: Columns) -> list[str] | None:
    return [table.header[at] for at in columns.labels] if len(columns.labels) > 1 else None


def _by_split(table: Table, columns: Columns, rows: _Rows) -> dict[str, _Rows]:
    if columns.split is None:
        return {"train": rows}
    positions: dict[str, list[int]] = {split: [] for split in _SPLITS}
    for at, row in enumerate(table.rows):
        value = row[columns.split].lower()
        split = next((name for name, words in _SPLITS.items() if value in words), None)
        if split is None:
            raise UserError(
                f"{table.where(at)}: {row[columns.split]!r} under {table.header[columns.split]}",
                "train, val or test",
                "mend that line",
            )
        positions[split].append(at)
    for split in ("train", "test"):
        if not positions[split]:
            raise UserError(
                f"{table.file}: no row is of {split}",
                "images in train and in test",
                "mark some rows, or remove the column",
            )
    return {split: rows.part(found) for split, found in positions.items() if found}


def _hold_out_test(config: DataConfig, splits: dict[str, _Rows], targets: dict[str, np.ndarray]) -> None:
    """Moves `data.test_fraction` of train to test, in place, stratified by the targets."""
    rows, values = splits["train"], targets["train"]
    strata = TARGETS[config.task].strata(torch.from_numpy(values))
    if rows.groups is None:
        kept, held_out = stratified_split(strata, config.test_fraction, seed=0)
    else:
        groups = torch.from_numpy(np.unique(rows.groups, return_inverse=True)[1])
        kept, held_out = split_by_group(strata, groups, config.test_fraction, seed=0)
    if not len(held_out):
        raise UserError(
            f"{config.root} without a column for the split, and with one image or group of each class",
            "two or more of a class, to hold one of them out for test",
            "add images, or a column split with train and test",
        )
    for split, positions in (("train", kept), ("test", held_out)):
        splits[split], targets[split] = rows.part(positions.tolist()), values[positions.numpy()]


def _check_paths(splits: dict[str, _Rows]) -> None:
    """Raises UserError for a file that is missing, and for one in two rows."""
    seen: dict[str, str] = {}
    for rows in splits.values():
        for path, where in zip(rows.paths, rows.where, strict=True):
            if not os.path.isfile(path):
                raise UserError(
                    f"{where}: {path}, which is missing",
                    "the path of an image, relative to data.images or to the table's folder",
                    "mend that line, or set data.images=FOLDER",
                )
            plain = os.path.normpath(path)
            if plain in seen:
                raise UserError(f"{where}: {path}, as {seen[plain]}", "each image once", "remove one of the lines")
            seen[plain] = where


def _numbered_groups(splits: dict[str, _Rows]) -> dict[str, torch.Tensor]:
    """Returns the number of each image's group, (N,), if it has one. Raises UserError for a group in two splits."""
    names = sorted({group for rows in splits.values() for group in rows.groups or []})
    numbers = {name: number for number, name in enumerate(names)}
    groups = {
        split: torch.tensor([numbers[group] for group in rows.groups])
        for split, rows in splits.items()
        if rows.groups is not None
    }
    if shared := shared_group(groups):
        number, one, other = shared
        raise UserError(
            f"the group {names[number]} in {one} and in {other}",
            "all images of a group in one split: else a network is tested on those it has seen",
            f"mark all its rows {one}, or remove the column with the splits",
        )
    return groups


def _targets(
    config: DataConfig, splits: dict[str, _Rows], names: list[str] | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the targets of each split, and the class names. Raises UserError for labels of another task."""
    source, targets = str(config.root), TARGETS[config.task]
    found: dict[str, list[Any]]
    if config.task == "multilabel" and names is None:
        names = sorted({name for rows in splits.values() for [label] in rows.labels for name in _split_names(label)})
        found = {split: [_row_of(label, names) for [label] in rows.labels] for split, rows in splits.items()}
    elif names is not None:
        found = {
            split: [_zeros_and_ones(labels, where, names) for labels, where in _with_place(rows)]
            for split, rows in splits.items()
        }
    else:
        found = {split: [_one_class(*row) for row in _with_place(rows)] for split, rows in splits.items()}
        if all(text.isdecimal() for values in found.values() for text in values):
            found = {split: [int(text) for text in values] for split, values in found.items()}
    arrays = {split: targets.read(values, len(values), f"{source}: {split}") for split, values in found.items()}
    return arrays, targets.name(arrays, dict.fromkeys(arrays, names))


def _with_place(rows: _Rows) -> zip:
    return zip(rows.labels, rows.where, strict=True)


def _one_class(labels: list[str], where: str) -> str:
    if not labels[0]:
        raise UserError(f"{where}: no label", "the class of the image", "add it, or remove that line")
    return labels[0]


def _split_names(label: str) -> list[str]:
    return [name.strip() for name in label.split(_BETWEEN_LABELS) if name.strip()]


def _row_of(label: str, names: list[str]) -> list[int]:
    given = _split_names(label)
    return [int(name in given) for name in names]


def _zeros_and_ones(labels: list[str], where: str, names: Sequence[str]) -> list[int]:
    for value, name in zip(labels, names, strict=True):
        if value not in ("0", "1", "0.0", "1.0"):
            raise UserError(
                f"{where}: {value or 'nothing'} under {name}",
                "0 or 1 in each column of a label",
                f'mend that line, or name the columns of labels: data.columns=["label={names[0]}","label=NAME"]',
            )
    return [int(float(value)) for value in labels]
