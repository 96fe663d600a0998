"""Keeps the memory that a training frees in the process: to ask the system anew costs up to a tenth of a step."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h of glibc, for mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 2**20
# Nothing is mapped apart from the heap, and the heap does not shrink.
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# What glibc itself comes to in a process that frees large blocks.
_AS_BEFORE = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 * _MIB, _MMAP_THRESHOLD: 32 * _MIB}


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside, what is freed is at hand for what comes next; behind it the system has it back. Of glibc alone.

    Without this each large tensor of a step is mapped, filled with zeros by the system page by page, and unmapped. It
    takes up to a seventh more memory: what is freed in one place is not always what is asked for next.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, value in _KEEPING.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _AS_BEFORE.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
