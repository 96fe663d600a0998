"""`python -m compress report FOLDER`: writes the pages of a run, or of all runs in a folder, from their files."""

import sys
from pathlib import Path

from compress.report.write import write_report
from compress.utils.errors import UserError

_HELP = """\
Writes report.html and report.md from the files of finished stages, without computing anything.

    python -m compress report outputs/RECIPE/RUN      one run
    python -m compress report outputs/RECIPE/SWEEP    all runs below a folder, compared
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs `arguments`, which default to those of the process; returns the exit status, 2 for a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        print(_HELP)
        return 0
    try:
        if len(arguments) != 1:
            raise UserError(f"{len(arguments)} arguments", "one folder", "see python -m compress report --help")
        print(write_report(Path(arguments[0])))
    except UserError as error:
        print(f"compress: {error}", file=sys.stderr)
        return 2
    return 0
