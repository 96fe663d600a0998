"""Reads the ratios of single layers, `PATTERN=RATIO`, by which a network loses more filters where it has too many."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from compress.utils.errors import UserError

_HIGHEST = 0.95


def ratios_by_layer(settings: Sequence[str], layers: Iterable[str]) -> dict[str, float]:
    """Returns the ratio of each of `layers` that a pattern names; the last pattern that does decides.

    Raises UserError for a setting in another form, a ratio out of range, and a pattern that names no layer.
    """
    names = list(layers)
    ratios: dict[str, float] = {}
    for text in settings:
        pattern, ratio = _parse(text)
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(
                f"prune.layer_ratios with {text}, whose pattern names no layer",
                f"names of convolutions or linear layers, as {', '.join(names[:3])}",
                "mend the pattern: * stands for any text, [0-4] for one of these digits",
            )
        ratios |= dict.fromkeys(found, ratio)
    return ratios


def _parse(text: str) -> tuple[str, float]:
    pattern, equals, number = text.rpartition("=")
    try:
        ratio = float(number)
    except ValueError:
        ratio = -1.0
    if not (pattern and equals and 0 <= ratio <= _HIGHEST):
        raise UserError(
            f"prune.layer_ratios with {text}", f"PATTERN=RATIO with a ratio from 0 to {_HIGHEST}", "write it so"
        )
    return pattern, ratio
