"""Memory that was freed is used again: the system is not asked for it anew, and has it back in the end."""

import platform
import resource

import pytest
import torch

from compress.training.malloc import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")

FLOATS = 12 * 2**20  # 48 MiB: more than glibc keeps by itself, as an activation of a network is
PAGES = 4 * FLOATS // resource.getpagesize()


def pages_touched_first(times: int) -> int:
    """How many pages the system had to give while a large tensor was made and freed so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(FLOATS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again() -> None:
    outside = pages_touched_first(4)
    with keep_freed_memory():
        pages_touched_first(16)  # glibc hands the first few small blocks between them to others
        inside = pages_touched_first(4)
    assert inside < PAGES / 10
    assert outside > 3 * PAGES or outside > 20 * inside  # fewer where the system gives huge pages


def test_the_system_has_it_back_behind() -> None:
    def resident_pages() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    with keep_freed_memory():
        tensors = [torch.ones(FLOATS) for _ in range(3)]
        del tensors
        held = resident_pages()
    assert held - resident_pages() > 2 * PAGES
    assert pages_touched_first(2) > PAGES / 1000  # mapped anew, as before
