"""What a mistyped name was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """At most `count` of `names` that are spelled nearly as `name`, the nearest first; none where nothing is near."""
    spelled = {}
    for known in names:
        spelled.setdefault(_plain(known), known)
    return [spelled[match] for match in get_close_matches(_plain(name), spelled, count, 0.6)]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """ "did you mean NAME? ", to stand before what else can be done; empty where nothing is near."""
    found = nearest(name, names, 1)
    return f"did you mean {found[0]}? " if found else ""


def _plain(name: str) -> str:
    """Without what people mix up: capitals, and the signs between words."""
    return name.lower().replace("-", "_").replace(" ", "_")
