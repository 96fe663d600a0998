"""Checks the names in `distill.teachers`: paths, and one that is no path."""

from collections.abc import Sequence
from pathlib import Path

from compress.utils.errors import UserError

OWN = "teacher"  # the run's own teacher, among the names


def check_teachers(names: Sequence[str]) -> None:
    """Raises UserError for a path that does not exist, before another teacher trains for hours."""
    missing = [name for name in names if name != OWN and not Path(name).exists()]
    if missing:
        raise UserError(
            f"distill.teachers with {missing[0]}, which does not exist",
            f"run folders, stage folders, checkpoint files, or {OWN}",
            "mend the path; a file that moved has another one",
        )
