"""Draws which layers cost accuracy as int8, and which of them stay float."""

import io
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from compress.report.plots import ACCENT, MARK

INT8, FLOAT = MARK, ACCENT
INCHES_A_LAYER = 0.17


def plot_sensitivity(table: dict[str, Any]) -> Figure:
    """A bar a layer, in the network's order from the top, of sensitivity.json's content."""
    rows = table["layers"]
    figure = Figure(figsize=(6.4, 2.2 + INCHES_A_LAYER * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colours = [FLOAT if row["kept_float"] else INT8 for row in rows]
    axes.barh(range(len(rows)), [row["kl_nats"] for row in rows], color=colours, height=0.75)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        "KL divergence from the float network when this layer alone is int8, in nats\n"
        f"(all of them int8: {table['int8_kl_nats']:.3g})"
    )
    axes.set_ylabel("layer")
    figure.suptitle(_title(table), x=0.01, ha="left", fontsize=9)
    axes.grid(axis="x", color="#e3e7ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [Patch(color=INT8, label="int8"), Patch(color=FLOAT, label="kept in float")]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return figure


def to_png(figure: Figure) -> bytes:
    """The picture as a file, the same bytes each time for one version of matplotlib."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _title(table: dict[str, Any]) -> str:
    kept = sum(row["kept_float"] for row in table["layers"])
    return (
        f"What each layer costs as int8: {kept} of {len(table['layers'])} stay float to lose at most "
        f"{table['max_drop_points']:g} points\n"
        f"top-1 on {table['images']} validation images: float {table['float_top1_percent']:.2f} %, "
        f"all int8 {table['int8_top1_percent']:.2f} %, as chosen {table['chosen_top1_percent']:.2f} %"
    )
