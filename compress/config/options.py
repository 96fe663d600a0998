"""Dataclass fields that hold a setting's default, meaning and range, and the functions that read them."""

from dataclasses import field, fields, is_dataclass
from typing import Any

from compress.utils.errors import UserError
from compress.utils.nearest import nearest


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """Returns a dataclass field with its help text and its range; the range includes `low` and `high`."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raises UserError at the first value outside its range or its choices, in `config` and all below it."""
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            check_ranges(value, f"{name}.")
            continue
        low, high, choices = item.metadata["low"], item.metadata["high"], item.metadata["choices"]
        parts = value if isinstance(value, list) else [value]
        strange = [part for part in parts if choices and part is not None and part not in choices]
        if strange:
            raise UserError(
                f"{name}={strange[0]}",
                f"one of {', '.join(choices)}",
                f"set {name}={next(iter(nearest(str(strange[0]), choices)), f'{choices[0]}, for example')}",
            )
        outside = [part for part in parts if low is not None and part is not None and not low <= part <= high]
        if outside:  # a NaN counts as outside
            raise UserError(f"{name}={outside[0]}", f"a number from {low} to {high}", f"set {name} within that range")


def describe(config: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Returns (name, value, help with its range) for every key of `config` and below, in order."""
    rows = []
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            rows += describe(value, f"{name}.")
            continue
        low, high, choices = item.metadata["low"], item.metadata["high"], item.metadata["choices"]
        span = f" [{' | '.join(choices)}]" if choices else f" [{low:g} to {high:g}]" if low is not None else ""
        rows.append((name, value, item.metadata["help"] + span))
    return rows


def as_typed(value: Any) -> str:
    """Returns a value as users type it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(as_typed(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
