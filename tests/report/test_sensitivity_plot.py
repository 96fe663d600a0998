"""The plot shows every layer's figure, and which layers stay float."""

import io
from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from compress.report.sensitivity_plot import FLOAT, INT8, plot_sensitivity, to_png


def table(layers: int) -> dict:
    """A content of sensitivity.json with every third layer kept in float."""
    rows = [
        {"layer": f"layer{number}.conv", "kl_nats": 0.001 * (number + 1), "kept_float": number % 3 == 0}
        for number in range(layers)
    ]
    return {
        "images": 402,
        "max_drop_points": 0.1,
        "float_top1_percent": 93.0,
        "int8_top1_percent": 92.04,
        "int8_kl_nats": 0.0336,
        "chosen_top1_percent": 92.9,
        "layers": rows,
    }


@pytest.mark.parametrize("layers", [1, 8, 57])
def test_a_bar_a_layer_in_the_networks_order(layers: int) -> None:
    content = table(layers)
    (axes,) = plot_sensitivity(content).axes
    bars = axes.patches
    assert [bar.get_width() for bar in bars] == [row["kl_nats"] for row in content["layers"]]
    assert [to_hex(bar.get_facecolor()) == FLOAT for bar in bars] == [row["kept_float"] for row in content["layers"]]
    assert {to_hex(bar.get_facecolor()) for bar in bars} <= {FLOAT, INT8}
    assert [label.get_text() for label in axes.get_yticklabels()] == [row["layer"] for row in content["layers"]]
    low, high = axes.get_ylim()
    assert low > high  # the first layer is at the top


def test_the_words_tell_figures_and_units() -> None:
    figure = plot_sensitivity(table(8))
    (axes,) = figure.axes
    assert "in nats" in axes.get_xlabel()
    assert "0.0336" in axes.get_xlabel()
    for figure_told in ("3 of 8", "0.1 points", "402 validation images", "93.00 %", "92.04 %", "92.90 %"):
        assert figure_told in figure.get_suptitle()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["int8", "kept in float"]


def test_the_same_table_gives_the_same_bytes() -> None:
    first, second = (to_png(plot_sensitivity(table(8))) for _ in range(2))
    assert first == second
    assert to_png(plot_sensitivity(table(9))) != first
    assert Image.open(io.BytesIO(first)).format == "PNG"


def test_57_layers_have_room_for_their_names() -> None:
    figure = plot_sensitivity(table(57))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
