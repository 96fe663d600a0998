"""Handles SIGTERM and SIGINT: a run ends in order, and a training ends after a whole step."""

import os
import signal
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from compress.utils.errors import Interrupted

Handler = Callable[[int, FrameType | None], Any] | int | None  # what `signal.getsignal` returns

_ENDS = (signal.SIGTERM, signal.SIGINT)
_PARENT = os.getppid()  # at the start; an orphaned process gets another parent
_LOOK_S = 1.0
_BUSY = threading.Lock()  # held while a job runs


@contextmanager
def deferred_signals() -> Iterator[list[signal.Signals]]:
    """Yields a list that receives each SIGTERM and SIGINT. After the first, a SIGINT acts as it does outside.

    The first signal received is raised again at the end. A signal that the process ignores stays ignored. Threads other
    than the main one receive none, as Python handles signals only there.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if signal.SIGINT in outside:
            signal.signal(signal.SIGINT, outside[signal.SIGINT])

    with _handled(note) as outside:
        yield received
    if received:
        signal.raise_signal(received[0])


@contextmanager
def handle_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGINT raise Interrupted, except in an inner `deferred_signals`."""
    with _handled(raise_interrupted):
        yield


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """Raises Interrupted; a signal handler."""
    raise Interrupted(signal.Signals(number), "; what was finished or saved before is kept")


@contextmanager
def end_with_parent() -> Iterator[None]:
    """Ends this process after what runs in here, or while it is idle, once the process that started it has ended.

    A process of joblib waits five minutes for another job otherwise, or forever to write a result that nobody reads.
    """
    _watch_parent()
    with _BUSY:
        yield


@cache  # once a process
def _watch_parent() -> None:
    threading.Thread(target=_exit_as_orphan, daemon=True).start()


def _exit_as_orphan() -> None:
    while not _is_orphan():
        time.sleep(_LOOK_S)
    with _BUSY:
        os._exit(1)


def _is_orphan() -> bool:
    return os.getppid() != _PARENT


@contextmanager
def stop_on_file(sign: Path) -> Iterator[None]:
    """Raises SIGINT once the file `sign` exists, or once the process that started this one has ended.

    This works where signals are blocked. A subprocess for which the main thread waits ends first.
    """
    done = threading.Event()

    def look() -> None:
        while not (sign.exists() or _is_orphan()):
            if done.wait(_LOOK_S):
                return
        interrupt_main(signal.SIGINT)

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[signal.Signals, Handler]]:
    """Sets `handler` for both signals, if not ignored, in the main thread; yields the previous handlers."""
    outside: dict[signal.Signals, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        outside = {number: signal.getsignal(number) for number in _ENDS}
        outside = {number: found for number, found in outside.items() if found is not signal.SIG_IGN}
    for number in outside:
        signal.signal(number, handler)
    try:
        yield outside
    finally:
        for number, found in outside.items():
            signal.signal(number, found)
