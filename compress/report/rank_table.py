"""The ranks of factorized layers: what to take from them, and a row for each layer."""

from dataclasses import dataclass
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class Ranks:
    """The layers that were replaced by factors; a row has the layer, its decomposition and its ranks."""

    takeaway: str
    rows: list[tuple[str, str, str]]


def rank_table(notes: list[dict[str, Any]]) -> Ranks | None:
    """Returns the table of what stage.json notes under "ranks"; None where no layer was factorized."""
    if not notes:
        return None
    rows = [
        (row["layer"], row["kind"].replace("_", " "), f"{', '.join(map(str, row['ranks']))} of {row['of']}")
        for row in notes
    ]
    return Ranks(_takeaway(notes), rows)


def _takeaway(notes: list[dict[str, Any]]) -> str:
    """Returns how far the ranks fell, on average and in the layers where they fell the most and the least.

    Of Tucker-2, whose two ranks fall alike, the last one counts.
    """
    ordered = sorted(notes, key=_share)
    lowest, highest = ordered[0], ordered[-1]
    if len(notes) == 1:
        rank = lowest["ranks"][-1]
        return f"{lowest['layer']} was replaced by factors of rank {rank}; from {lowest['of']} on they save no MAC."
    return (
        f"{len(notes)} layers were replaced by factors. On average they have {100 * mean(map(_share, notes)):.0f} % of "
        f"the rank from which on no MAC is saved: {lowest['layer']} the least, {_rank(lowest)}; {highest['layer']} the "
        f"most, {_rank(highest)}."
    )


def _share(row: dict[str, Any]) -> float:
    return row["ranks"][-1] / row["of"]


def _rank(row: dict[str, Any]) -> str:
    return f"{row['ranks'][-1]} of {row['of']}"
