"""The settings that a search varies: turns Hydra's sweep syntax into Optuna's distributions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from typing import Any, Optional

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compress.config.schema import Config
from compress.utils.errors import UserError

Value = int | float | str
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Dimension:
    """A setting and the values that it may take; a choice is kept as it was typed."""

    key: str
    distribution: Distribution

    @property
    def ends(self) -> list[Value]:
        """Both ends of a range, or every choice: where these are valid, all values of the dimension are."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return [choice for choice in found.choices if isinstance(choice, str)]  # all are: they are kept as typed
        return [found.low, found.high]

    def typed(self, value: Value) -> str:
        """Returns the override that sets it: `prune.ratio=0.3`."""
        if isinstance(value, float) and getattr(self.distribution, "step", None):
            value = _tidy(value)
        return f"{self.key}={value if isinstance(value, str) else repr(value)}"


def read_space(overrides: Sequence[Override]) -> tuple[list[str], list[Dimension]]:
    """Splits `overrides` into those of every trial, as they were typed, and the dimensions that vary.

    A dimension is a choice, range or interval; tag(log, ...) makes it logarithmic. Where a key is there twice, the last
    one counts. Raises UserError for a space that cannot be searched, and where nothing varies.
    """
    last = {override.get_key_element(): override for override in overrides}
    varied = [_dimension(key, override) for key, override in last.items() if override.is_sweep_override()]
    if not varied:
        raise UserError(
            "hydra/sweeper=optuna with nothing to search",
            "a setting or more with interval(a,b), range(a,b,step) or choice(a,b,c)",
            "write 'prune.ratio=interval(0.2,0.8)', for example",
        )
    return [str(override.input_line) for override in last.values() if not override.is_sweep_override()], varied


def _dimension(key: str, override: Override) -> Dimension:
    log = _is_log(override)
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return Dimension(key, _interval(override, _number_type(key, override), sweep.start, sweep.end, log))
    if isinstance(sweep, RangeSweep):
        values = list(override.sweep_iterator())
        if _number_type(key, override) is int and not all(isinstance(value, int) for value in values):
            raise _mistake(override, "whole numbers", "write whole numbers")
        return Dimension(key, _range(override, values, sweep.step, log))
    if log:
        raise _mistake(override, "tag(log, ...) around an interval or a range", "leave the tag out")
    return Dimension(key, CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator()))))


def _is_log(override: Override) -> bool:
    tags: set[str] = getattr(override.value(), "tags", set())
    if tags - {"log"}:
        raise _mistake(override, "no tag but log", "remove the tag")
    return "log" in tags


def _interval(override: Override, kind: type, low: float | None, high: float | None, log: bool) -> Distribution:
    if low is None or high is None or not -math.inf < low <= high < math.inf or (log and low <= 0):
        raise _mistake(override, "two finite ends, the lower one first, above 0 with log", "mend the ends")
    if kind is float:
        return FloatDistribution(low, high, log=log)
    if not (float(low).is_integer() and float(high).is_integer()):  # Hydra reads both ends as floats
        raise _mistake(override, "whole numbers", "write whole numbers")
    return IntDistribution(int(low), int(high), log=log)


def _range(override: Override, values: list[Any], step: float, log: bool) -> Distribution:
    if not values:
        raise _mistake(override, "a range with a value in it", "mend its ends or its step")
    low, high, step = min(values), max(values), abs(step)
    if log and (low <= 0 or step != 1 or isinstance(low, float)):
        raise _mistake(
            override, "with log a range of whole numbers above 0 in steps of 1", "use an interval, or no log"
        )
    if isinstance(low, int):
        return IntDistribution(low, high, log=log, step=int(step))
    start, stride = Decimal(str(_tidy(low))), Decimal(str(step))
    return FloatDistribution(float(start), float(start + (len(values) - 1) * stride), step=float(step))


def _tidy(value: float) -> float:
    """Rounds to 12 digits: 3 * 0.1 becomes 0.3, not 0.30000000000000004."""
    return float(f"{value:.12g}")


def _number_type(key: str, override: Override) -> type:
    """Returns int or float, as the setting is declared."""
    section: Any = Config
    for part in key.split("."):
        found = [item for item in fields(section) if item.name == part] if is_dataclass(section) else []
        section = found[0].type if found else None
    kinds = {int: int, Optional[int]: int, float: float, Optional[float]: float}
    if section not in kinds:
        raise _mistake(override, "a setting that is a number", "write choice(a,b,c)")
    return kinds[section]


def _mistake(override: Override, expected: str, mend: str) -> UserError:
    return UserError(str(override.input_line), expected, mend)
