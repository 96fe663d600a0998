"""SIGTERM and SIGINT while a network is trained: they ask for the end, and the loop ends where its state is whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[list[signal.Signals]]:
    """A list that receives each SIGTERM and SIGINT. Once one has come, a SIGINT does what it does outside.

    One that came after the list was last looked at is raised again at the end. A signal that the process ignores stays
    ignored, and a thread other than the main one, which Python lets handle no signal, receives none.
    """
    received: list[signal.Signals] = []
    outside = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                outside[number] = signal.getsignal(number)

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        if signal.SIGINT in outside:
            signal.signal(signal.SIGINT, outside[signal.SIGINT])

    for number in outside:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in outside.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
