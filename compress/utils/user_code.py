"""Finds the user's own code in the traceback of an exception."""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from compress.utils.errors import UserError

_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_library(path: str) -> bool:
    """Returns whether `path` is a source file of this package, of Python or of an installed package."""
    return is_ours(path) or path.startswith(("<frozen", *_LIBRARIES)) or "site-packages" in path


def is_ours(path: str) -> bool:
    """Returns whether `path` is a source file of this package."""
    return path.startswith(_PACKAGE)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields `error`, then its causes, back to the first."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def user_line(error: BaseException) -> str | None:
    """Returns the innermost line of a user's code that `error` passed, e.g. "net.py, line 12, in forward".

    Returns None where it passed no such line.
    """
    for cause in causes(error):
        own = [frame for frame in traceback.extract_tb(cause.__traceback__) if not is_library(frame.filename)]
        own = [frame for frame in own if frame.name != "<module>" and not frame.filename.startswith("<")]
        if own:
            return f"{Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name}"
    return None


def error_in_user_code(received: str, error: BaseException) -> UserError:
    """Returns `error`, which the user's code raised, as a UserError with its file and line.

    Where it passed no line of the user's code, the place is the last call in a library.
    """
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    what = f"{type(error).__name__}: {' '.join(str(text).split())}".rstrip(": ")
    place: str | None
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}, line {error.lineno}"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_ours(frame.filename)]
        frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
        own = [frame for frame in frames if not is_library(frame.filename)] or frames
        place = f"{own[-1].filename}, line {own[-1].lineno}" if own else None
    return UserError(
        f"{received}, which raises {what}{f' ({place})' if place else ''}",
        "code that runs",
        "mend it there" if place else "mend that code",
    )


def first_line(error: BaseException) -> str:
    """Returns the kind of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def innermost_line(stack_trace: str | None) -> str | None:
    """Returns the innermost line of a user's code in a traceback's text, "net.py, line 12"; None without one."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', stack_trace or "")
    own = [(path, line) for path, line in lines if not is_library(path)]
    return f"{Path(own[-1][0]).name}, line {own[-1][1]}" if own else None
