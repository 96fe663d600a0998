"""What a Slurm job does when its time is up: it saves its work and lets submitit queue it again, to resume there."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from compress.utils.errors import Interrupted


@contextmanager
def requeue_on_timeout() -> Iterator[None]:
    """Delays submitit's handler of SIGUSR2, which ends the process at once, until what runs inside has stopped.

    SIGTERM is ignored, because Slurm sends it too when a job is queued again. Raises Interrupted where the job was
    stopped for another reason.
    """
    requeue = _handler(signal.SIGUSR2)
    out_of_time = []

    def stop(number: int, frame: FrameType | None) -> None:
        out_of_time.append(number)
        _handler(signal.SIGINT)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    except Interrupted:
        if out_of_time:
            requeue(signal.SIGUSR2, None)
        raise
    finally:
        signal.signal(signal.SIGUSR2, requeue)


def _handler(number: signal.Signals) -> Callable[[int, FrameType | None], object]:
    """Returns the function that handles a signal. Raises ValueError where the system handles it."""
    found = signal.getsignal(number)
    if not callable(found):
        raise ValueError(f"received {found!r} as the handler of {number.name}; expected a function of Python's")
    return found
