"""Stages by what they were made from: a folder that runs, processes and machines share."""

from compress.cache.lock import held, is_dead_here, this_process
from compress.cache.store import Cache

__all__ = ["Cache", "held", "is_dead_here", "this_process"]
