"""What a Slurm job does when its time is up: it saves, and then lets submitit queue it again, where it goes on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from compress.utils.errors import Interrupted


@contextmanager
def queued_again() -> Iterator[None]:
    """Has submitit's own handler of SIGUSR2, which leaves the process at once, wait until what runs here has stopped.

    SIGTERM is ignored: Slurm sends one too when a job is queued again.
    """
    leave = signal.getsignal(signal.SIGUSR2)
    out_of_time = []

    def stop(number: int, frame: object) -> None:
        out_of_time.append(number)
        signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    except Interrupted:
        if out_of_time:
            leave(signal.SIGUSR2, None)
        raise
    finally:
        signal.signal(signal.SIGUSR2, leave)
