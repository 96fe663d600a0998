"""What ends a run in a single line and never in a traceback: a user's own mistake, and a signal."""

import sys
from signal import Signals

from compress.utils.torchrun import last_words, rank


class UserError(Exception):
    """A mistake that the user can mend: what was received, what was expected, what to do.

    `__main__` prints it as the last line on stderr and exits with status 2.
    """

    def __init__(self, received: str, expected: str, mend: str):
        super().__init__(received, expected, mend)
        self.received, self.expected, self.mend = (" ".join(str(part).split()) for part in (received, expected, mend))

    def __str__(self) -> str:
        return f"received {self.received}; expected {self.expected}; to mend it: {self.mend}"


class EarlyStopped(UserError):
    """A run was ended because its accuracy stayed below the floor that `stop_below` sets."""


class Interrupted(BaseException):
    """A signal has come; `where` says at what point, and what is kept.

    No Exception: what goes on after a fault, as the next job of a multirun does, must not go on after this.
    """

    def __init__(self, signal: Signals, where: str):
        super().__init__(signal, where)
        self.signal, self.where = signal, where

    def __str__(self) -> str:
        return f"received {self.signal.name}{self.where}"


def tell(message: str) -> None:
    """The last line of a process that failed, on stderr; one of several says which it is."""
    line = f"compress: {message}" if rank() == 0 else f"compress, process {rank()}: {message}"
    print(line, file=sys.stderr, flush=True)
    last_words(line)
