"""Keeps the memory that a training frees in the process: requesting it again costs up to a tenth of a step."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h of glibc, for mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 2**20
# No block is mapped outside the heap, and the heap does not shrink.
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# These are glibc's own values in a process that frees large blocks.
_AS_BEFORE = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 * _MIB, _MMAP_THRESHOLD: 32 * _MIB}


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keeps freed memory in the process while the context lasts, and returns it to the system at the end (glibc only).

    Without this each large tensor of a step is mapped, filled with zeros by the system page by page, and unmapped. The
    process takes up to a seventh more memory, because a freed block does not always fit the next request.
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
