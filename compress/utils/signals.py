"""SIGTERM and SIGINT: anywhere they end a run in an orderly way, and a training where its state is whole."""

import os
import signal
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from compress.utils.errors import Interrupted

Handler = Callable[[int, FrameType | None], Any] | int | None  # what `signal.getsignal` returns

_ENDS = (signal.SIGTERM, signal.SIGINT)
_PARENT = os.getppid()  # as it was at the start: who is orphaned gets another one
_LOOK_S = 1.0


@contextmanager
def deferred_signals() -> Iterator[list[signal.Signals]]:
    """A list that receives each SIGTERM and SIGINT. Once one has come, a SIGINT does what it does outside.

    One that came after the list was last looked at is raised again at the end. A signal that the process ignores stays
    ignored, and a thread other than the main one, which Python lets handle no signal, receives none.
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
    """SIGTERM and SIGINT raise Interrupted, but in a training inside, which ends as `deferred_signals` lets it."""
    with _handled(raise_stopped):
        yield


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """A handler of signals."""
    raise Interrupted(signal.Signals(number), "; what was finished or saved before is kept")


@contextmanager
def interrupted_by(sign: Path) -> Iterator[None]:
    """As one SIGINT, once the file `sign` is there, or the process that started this one is gone.

    A signal that is blocked comes through so; a subprocess that the main thread waits for ends first.
    """
    done = threading.Event()

    def look() -> None:
        while not (sign.exists() or os.getppid() != _PARENT):
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
    """Has `handler` take both signals, where they are not ignored and this is the main thread; yields what did so."""
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
