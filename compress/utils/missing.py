"""Figures that could not be measured: null in metrics.json, with the cause under `unavailable`. Needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unavailable:
    """Stands in for a figure that could not be measured."""

    cause: str


def with_causes(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns metrics.json's content: null for each figure that is Unavailable, and at the end the causes."""
    causes = {name: figure.cause for name, figure in figures.items() if isinstance(figure, Unavailable)}
    return figures | dict.fromkeys(causes) | {"unavailable": causes}


def earlier_figures(metrics: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns figures of an earlier metrics.json, which may lack them, for `with_causes`."""
    causes = {name: metrics["unavailable"].get(name, "it was not taken when the stage was computed") for name in names}
    return {name: Unavailable(cause) if metrics.get(name) is None else metrics[name] for name, cause in causes.items()}
