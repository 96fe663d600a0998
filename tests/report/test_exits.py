"""The section on exits: true to the files, and honest about which latency it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compress.report.exits import exits
from compress.report.run_files import load_run
from compress.report.stage_table import key_figures
from tests.report.test_run_page import read_page, written
from tests.report.tiny_run import finish, write_tiny_run

STAGES = ("teacher", "early_exit")
ENDS = [
    {"after": "layer1", "macs": 20_000, "images": 24, "share_percent": 60.0, "top1_percent": 95.83},
    {"after": "layer2", "macs": 40_000, "images": 0, "share_percent": 0.0, "top1_percent": None},
    {"after": None, "macs": 60_000, "images": 16, "share_percent": 40.0, "top1_percent": 87.5},
]
FIGURES = {
    "latency_ms_p50": 0.2,
    "latency_ms_mean": 0.66,
    "speedup_vs_teacher": 3.0,
    "mean_macs": 36_000.0,
    "exits": {
        "ends": ENDS,
        "to_the_end_top1_percent": 93.0,
        "delta_points_to_the_end": -0.5,
        "delta_ci95_points_to_the_end": [-2.25, 1.25],
        "timed_images": 40,
        "to_the_end_latency_ms_mean": 1.1,
        "to_the_end_latency_ms_p50": 1.05,
        "to_the_end_latency_ms_p95": 1.3,
        "last_end_latency_ms_mean": 1.0,
        "last_end_latency_ms_p50": 0.98,
        "last_end_latency_ms_p95": 1.2,
        "latency_share": 0.66,
    },
}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_run(folder: Path, pictures: bool = True) -> Path:
    """A run whose last stage has exits: 24 of 40 images leave at the first one."""
    write_tiny_run(folder, STAGES, **FIGURES)
    place = folder / "02_early_exit"
    if pictures:
        generator = np.random.default_rng(0)
        group = lambda sure: {
            "images": generator.integers(0, 256, (2, 8, 8, 1), dtype=np.uint8),
            "index": np.array([3, 5]),
            "labels": np.array([0, 1]),
            "predicted": np.array([0, 2]),
            "confidence": np.array(sure, np.float32),
        }
        found = {f"{name}_{key}": value for name, sure in (("easy", [0.999, 0.998]), ("hard", [0.31, 0.35]))
                 for key, value in group(sure).items()}  # fmt: skip
        save_file(found | {"exit_index": np.zeros(40, np.int64)}, place / "exits.safetensors")
    finish(place, {}, STAGES)
    thresholds = [(0.9, 1.5), (2.0, 1.25), (None, None)]
    rows = [{"threshold": threshold, "temperature": temperature} for threshold, temperature in thresholds]
    change(place / "stage.json", notes={"exits": {"ends": rows}})
    return folder


def test_it_says_who_leaves_and_what_that_saves(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    found = exits(load_run(folder))
    assert [(row.name, row.share, row.percent, row.threshold) for row in found.rows] == [
        ("after layer1", "60.0 %", "95.83 %", "90.00 %"),
        ("after layer2", "0.0 %", "–", "none leaves"),
        ("the end", "40.0 %", "87.50 %", "–"),
    ]
    assert [times[1:] for times in found.times] == [
        ("0.660 ms", "0.200 ms", "1.25 ms"),
        ("1.10 ms", "1.05 ms", "1.30 ms"),
        ("1.00 ms", "0.980 ms", "1.20 ms"),
    ]
    for text in written(folder):
        assert "60 % of 40 test images leave before the end." in text
        assert "0.660 ms, which is 0.66 of the 1.00 ms of a file of the last end alone" in text
        assert "it has 36.0 k MACs, and one that goes to the end 60.0 k" in text
        assert "−0.50 points (95 % interval −2.25 to 1.25)" in text


def test_the_latency_of_the_run_is_the_mean(tmp_path: Path) -> None:
    """The median, 0.2 ms, is the time of the first exit: it would flatter."""
    page, _ = written(write_run(tmp_path))
    assert "early_exit takes 0.660 ms an image; the teacher, in turns with it, 1.98 ms." in page
    assert "median, or mean" in page
    assert "it is the mean over 40 test images" in page
    figures = {figure.name: (figure.value, figure.change) for figure in key_figures(load_run(tmp_path))}
    assert figures["Latency, one image"] == ("0.660 ms", "3.0 times faster")
    assert figures["MACs, one image"] == ("36.0 k", "2.8 times fewer")


def test_easy_and_hard_images_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    found = exits(load_run(folder))
    assert [(card.label, card.predicted, card.right, card.confidence) for card in found.easy] == [
        ("cat", "cat", True, "99.9 %"),
        ("dog", "cow", False, "99.8 %"),
    ]
    assert [card.confidence for card in found.hard] == ["31.0 %", "35.0 %"]
    page = read_page(folder)
    assert "exits" in page.sections
    assert "Hard images" in page.text
    assert sum(address.startswith("data:image/png") for address in page.addresses) >= 4


def test_a_run_without_its_pictures_says_so(tmp_path: Path) -> None:
    page = read_page(write_run(tmp_path, pictures=False))
    assert "Easy and hard images: 02_early_exit has no exits.safetensors." in page.text
    assert "Hard images: they go" not in page.text


def test_a_run_without_exits_has_no_such_section(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path)
    assert exits(load_run(folder)) is None
    assert "exits" not in read_page(folder).sections
