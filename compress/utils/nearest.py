"""Finds the names that a mistyped name may stand for."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, names: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Returns at most `count` of `names` that are spelled nearly as `name`, the nearest first.

    `cutoff` is difflib's: the share of the letters that two names have in common, from 0 to 1.
    """
    spelled: dict[str, str] = {}
    for known in names:
        spelled.setdefault(_plain(known), known)
    return [spelled[match] for match in get_close_matches(_plain(name), spelled, count, cutoff)]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns "did you mean NAME? ", the start of a hint; empty where no name is near."""
    found = nearest(name, names, 1)
    return f"did you mean {found[0]}? " if found else ""


def _plain(name: str) -> str:
    """Removes what people mix up: capitals, and the signs between words."""
    return name.lower().replace("-", "_").replace(" ", "_")
