"""Saves torch.onnx.export work that it repeats in every call: a third of the time of a small network's export."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch.onnx._internal.exporter import _registration

# A private class of torch: where a later version lacks it, each export builds its own table again.
_REGISTRY = getattr(_registration, "ONNXRegistry", None)
_from_torchlib = cache(getattr(_REGISTRY, "from_torchlib", lambda: None))


@contextmanager
def kept_registry() -> Iterator[None]:
    """Makes torch.onnx.export reuse the table of operators that it built before for the same opset.

    For each new table it parses the source of 500 operators, 0.4 s. The option `custom_translation_table` would change
    the kept table: do not use it inside.
    """
    registry = _REGISTRY
    original = None if registry is None else vars(registry).get("from_torchlib")
    if registry is None or original is None:
        yield
        return
    registry.from_torchlib = staticmethod(_from_torchlib)
    try:
        yield
    finally:
        registry.from_torchlib = original


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Collects no cycles while the context lasts.

    An export makes millions of objects, and each full collection scans all that torch has imported, 0.3 s.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
