"""Reads a table of images from a CSV file, and finds the columns that hold paths, labels, splits and groups."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean

_USUAL_NAMES = {
    "image": ("image", "path", "filename", "file", "image_path", "filepath", "file_name"),
    "label": ("label", "class", "target", "labels", "classes"),
    "split": ("split", "set", "subset"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "group_id"),
}
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Table:
    """The rows of a file; `lines` are where they end in it, from 1."""

    file: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def where(self, row: int) -> str:
        """Returns the place of a row, for errors."""
        return f"{self.file}, line {self.lines[row]}"


@dataclass(frozen=True)
class Columns:
    """The numbers of a table's columns."""

    image: int
    labels: list[int]  # one, or one of 0 and 1 for each label
    split: int | None
    group: int | None


def read_table(file: Path) -> Table:
    """Reads a CSV file in UTF-8, separated by the commas, semicolons or tabs of its header.

    Raises UserError for a file that cannot be read, and for a row with another number of values than the header.
    """
    try:
        text = file.read_text("utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}", "a table in UTF-8", "mend data.root, or save the file as UTF-8") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_SEPARATORS, key=first.count), strict=True)
    header: list[str] = []
    rows, lines = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if row:  # an empty line ends many files
                rows.append([value.strip() for value in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}", "a row of a CSV file", "mend that line") from error
    table = Table(file, header, rows, lines)
    if not rows:
        raise UserError(f"{file} without a row", "a header, and a row for each image", "add the rows")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file} with two columns {twice}", "a name for each column", "rename one of them")
    odd = next((at for at, row in enumerate(rows) if len(row) != len(header)), None)
    if odd is not None:
        raise UserError(
            f"{table.where(odd)}: {len(rows[odd])} values under {len(header)} columns",
            "a value for each column",
            "mend that line; values with separators in them stand in double quotes",
        )
    return table


def find_columns(table: Table, named: Sequence[str], several_labels: bool) -> Columns:
    """Returns the columns that `named` lists as KIND=NAME, and else those that have one of the usual names.

    With `several_labels`, there may be several columns of labels, of 0 and 1; where none is named or has a usual name,
    all others are. Raises UserError where a column is missing, and where two may be meant.
    """
    chosen = _named(table, named)
    for kind in _USUAL_NAMES:
        if kind not in chosen:
            chosen[kind] = _with_usual_name(table, kind, taken=list(chain.from_iterable(chosen.values())))
    if several_labels and not chosen["label"]:
        taken = list(chain.from_iterable(chosen.values()))
        chosen["label"] = [at for at in range(len(table.header)) if at not in taken]
    for kind, columns in chosen.items():
        if len(columns) > 1 and not (kind == "label" and several_labels):
            names = [table.header[at] for at in columns]
            raise UserError(
                f"{table.file} with the columns {', '.join(names)} for the {kind}",
                "one column" + (", or data.task=multilabel" if kind == "label" else ""),
                f'name it: data.columns=["{kind}={names[0]}"]',
            )
    for kind in ("image", "label"):
        if not chosen[kind]:
            raise UserError(
                f"{table.file} with the columns {', '.join(table.header)}",
                f"a column with the {kind} of each row, called {', '.join(_USUAL_NAMES[kind][:4])} or the like",
                f'name it: data.columns=["{kind}=NAME"]',
            )
    split, group = (next(iter(chosen[kind]), None) for kind in ("split", "group"))
    return Columns(chosen["image"][0], chosen["label"], split, group)


def _with_usual_name(table: Table, kind: str, taken: list[int]) -> list[int]:
    usual = [name.lower().replace(" ", "_") in _USUAL_NAMES[kind] for name in table.header]
    return [at for at, found in enumerate(usual) if found and at not in taken]


def _named(table: Table, named: Sequence[str]) -> dict[str, list[int]]:
    """Returns the numbers of the columns that the user names, by kind."""
    chosen: dict[str, list[int]] = {}
    for text in named:
        kind, equals, name = text.partition("=")
        if kind not in _USUAL_NAMES or not equals:
            raise UserError(
                f"data.columns with {text}", f"KIND=NAME, KIND one of {', '.join(_USUAL_NAMES)}", "mend that entry"
            )
        if name not in table.header:
            raise UserError(
                f"data.columns with {text}",
                f"a column of {table.file}: {', '.join(table.header[:10])}",
                f"{did_you_mean(name, table.header)}mend that entry",
            )
        chosen.setdefault(kind, []).append(table.header.index(name))
    return chosen
