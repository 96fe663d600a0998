"""The front of an architecture search: the best network of each cost, in a chart among all that were tried."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compress.report.line_chart import Plot, circle, draw
from compress.report.svg import Axis, ticks
from compress.utils.metric import Metric
from compress.utils.units import count_text, three_digits


@dataclass(frozen=True)
class Front:
    """The networks of the front, the cheapest first; cells of a row stand under `heads`, and `taken` is its number."""

    takeaway: str
    drawing: Markup
    heads: list[str]
    rows: list[list[str]]
    taken: int


def architecture_front(notes: dict[str, Any] | None, metric: Metric) -> Front | None:
    """Returns what stage.json notes of a search; None where no candidate was scored."""
    if not notes:
        return None
    rows = notes["front"]
    taken = next(at for at, row in enumerate(rows) if row["number"] == notes["taken"])
    heads = ["network", "MACs", "parameters", "of the budget", f"validation {metric.label}", "distance, nats"]
    heads += ["blocks left out", "smaller kernels"]
    if any(row["candidate"]["input_size"] for row in rows):
        heads.append("input, pixels a side")
    cells = [_cells(row, len(heads)) for row in rows]
    return Front(_takeaway(notes, rows[taken], metric), _chart(notes, rows[taken]), heads, cells, taken)


def _cells(row: dict[str, Any], columns: int) -> list[str]:
    candidate = row["candidate"]
    cells = [
        "fitted to its file" if row["number"] is None else str(row["number"]),
        f"{100 * row['macs_share']:.1f} % ({count_text(row['macs'])})",
        f"{100 * row['params_share']:.1f} % ({count_text(row['params'])})",
        f"{100 * row['share']:.1f} %",
        f"{row['val_percent']:.2f} %",
        three_digits(row["distance"]),
        str(len(candidate["without"])),
        str(len(candidate["kernels"])),
        str(candidate["input_size"] or "–"),
    ]
    return cells[:columns]


def _takeaway(notes: dict[str, Any], taken: dict[str, Any], metric: Metric) -> str:
    """Returns how many networks were tried, which one was taken, and what it lacks."""
    candidate = taken["candidate"]
    lacks = [f"{len(candidate['without'])} blocks less"] if candidate["without"] else []
    lacks += [f"{len(candidate['kernels'])} smaller kernels"] if candidate["kernels"] else []
    lacks += [f"images of {candidate['input_size']} pixels a side"] if candidate["input_size"] else []
    form = f"It has {' and '.join(lacks)}." if lacks else "It differs from the whole network by its widths alone."
    return (
        f"Of {notes['candidates']:,} sub-networks the one that was {'picked' if notes['picked'] else 'taken'} has "
        f"{100 * taken['macs_share']:.1f} % of the MACs and {taken['val_percent']:.2f} % validation {metric.label} "
        f"before fine-tuning. {form}"
    )


def _chart(notes: dict[str, Any], taken: dict[str, Any]) -> Markup:
    """Draws the distance of all tried networks against their cost, and a line through the front."""
    tried = notes["tried"]
    front = [(100 * row["share"], row["distance"]) for row in notes["front"] if row["number"] is not None]
    points = [(100 * share, distance) for share, distance in tried] + front
    x_high, y_high = (1.05 * max(values) for values in zip(*points, strict=True))
    x, y = Axis(0.0, x_high, 46, 440), Axis(0.0, y_high, 262, 40)
    x_ticks, y_ticks = ([(value, f"{value:g}") for value in ticks(0.0, axis.high)] for axis in (x, y))
    labels = ("cost, % of the budget", "distance from the whole network's outputs, nats")
    plot = Plot(460, 310, x, y, x_ticks, y_ticks, labels)
    marks = Markup("").join(
        circle(x.at(share), y.at(distance), kind, f"{distance:.3g} nats at {share:.1f} % of the budget")
        for kind, some in (
            ("tried", [(100 * share, distance) for share, distance in tried]),
            ("plain", front),
            ("chosen", [(100 * taken["share"], taken["distance"])]),
        )
        for share, distance in some
    )
    told = "; ".join(f"{distance:.3g} nats at {share:.1f} % of the budget" for share, distance in front)
    return draw(plot, front, "architectures", ("Distance by cost of the sub-networks that were tried", told), marks)
