"""Formats numbers for people, in the same way on the terminal and in the report."""

import re
from collections.abc import Sequence

_FRACTION = re.compile(r"-?\d*\.\d+(e[-+]?\d+)?")


def size_text(count: float) -> str:
    """Formats bytes to three digits, e.g. "743 KiB"."""
    return _in_units(count, 1024, ("B", "KiB", "MiB", "GiB"))


def count_text(count: float) -> str:
    """Formats a count to three digits, e.g. "5.58 M"."""
    return _in_units(count, 1000, ("", "k", "M", "G"))


def three_digits(value: float) -> str:
    """Formats to three significant digits and never an exponent, e.g. "0.294", "17.0", "1020"."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def setting_text(text: str) -> str:
    """Formats a setting for a table: numbers, also in a list, to four significant digits, anything else unchanged."""
    if text.startswith("[") and text.endswith("]"):
        return f"[{','.join(map(setting_text, text[1:-1].split(',')))}]"
    if not _FRACTION.fullmatch(text) or float(f"{float(text):.4g}") == float(text):
        return text
    return f"{float(text):.4g}" if abs(float(text)) < 1000 else f"{float(text):.0f}"


def threads_text(count: int) -> str:
    """Formats a number of threads, e.g. "2 threads"."""
    return f"{count} thread" + ("s" if count != 1 else "")


def _in_units(value: float, base: int, units: Sequence[str]) -> str:
    unit = 0
    while value >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{three_digits(value)} {units[unit]}" if unit else f"{value:.0f} {units[0]}".rstrip()
