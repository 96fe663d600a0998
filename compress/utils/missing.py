"""A figure that could not be taken: null in metrics.json, with its cause under `unavailable`. Needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Missing:
    """In the place of a figure: why there is none."""

    cause: str


def with_causes(figures: dict[str, Any]) -> dict[str, Any]:
    """metrics.json's content: null for each figure that is Missing, and the causes behind all."""
    causes = {name: figure.cause for name, figure in figures.items() if isinstance(figure, Missing)}
    return figures | dict.fromkeys(causes) | {"unavailable": causes}


def taken_before(metrics: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Figures out of an earlier metrics.json, which may not have them, as `with_causes` takes them."""
    causes = {name: metrics["unavailable"].get(name, "it was not taken when the stage was computed") for name in names}
    return {name: Missing(cause) if metrics.get(name) is None else metrics[name] for name, cause in causes.items()}
