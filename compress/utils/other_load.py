"""Measures how many of this process's cores other programs use; only Linux counts it."""

import os
import time
from pathlib import Path

_PROC = Path("/proc")


class OtherLoad:
    """Measures the load since the object was made."""

    def __init__(self) -> None:
        self._start_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def cores(self) -> float:
        """Returns the cores that processes other than this one and its children used; 0 where nothing counts it."""
        busy_s = _busy_s() - self._busy_s - (_own_s() - self._own_s)
        return max(0.0, busy_s / max(1e-9, time.monotonic() - self._start_s))


def _busy_s() -> float:
    """Returns the seconds that the cores to which this process is pinned were busy since the machine started."""
    if not (_PROC / "stat").is_file():
        return 0.0
    pinned = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [line.split() for line in (_PROC / "stat").read_text().splitlines()]
    ticks = sum(sum(map(int, row[1:4])) for row in rows if row[0] in pinned)  # user, nice and system
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Returns the seconds of this process and its children, both running and ended ones."""
    spent = os.times()
    own = spent.user + spent.system + spent.children_user + spent.children_system
    return own + sum(_spent_s(child) for child in _children(os.getpid()))


def _children(process: int) -> list[int]:
    found = []
    for file in (_PROC / str(process) / "task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *_children(child)]
    return found


def _spent_s(process: int) -> float:
    try:
        fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended in between
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
