"""Errors that end a run with a single line in place of a traceback: a mistake of the user, or a signal."""

import sys
from signal import Signals

from compress.utils.torchrun import rank, write_error_file


class UserError(Exception):
    """A mistake that the user can fix: what was received, what was expected, and how to fix it.

    `__main__` prints it as the last line on stderr and exits with status 2.
    """

    def __init__(self, received: str, expected: str, mend: str):
        super().__init__(received, expected, mend)
        self.received, self.expected, self.mend = (" ".join(str(part).split()) for part in (received, expected, mend))

    def __str__(self) -> str:
        return f"received {self.received}; expected {self.expected}; to mend it: {self.mend}"


class EarlyStopped(UserError):
    """A run was ended because its accuracy stayed below the floor in `stop_below`."""


class Interrupted(BaseException):
    """A signal has come; `where` says at what point, and what is kept.

    It is no Exception: code that continues after an error, as a multirun does with its next job, must not continue.
    """

    def __init__(self, signal: Signals, where: str):
        super().__init__(signal, where)
        self.signal, self.where = signal, where

    def __str__(self) -> str:
        return f"received {self.signal.name}{self.where}"


def print_error(message: str) -> None:
    """Prints the last line of a failed process to stderr; one of several processes adds its number."""
    line = f"compress: {message}" if rank() == 0 else f"compress, process {rank()}: {message}"
    print(line, file=sys.stderr, flush=True)
    write_error_file(line)
