"""The estimated energy is labelled as one wherever it stands, and the report says where it and the time disagree."""

from pathlib import Path

import pytest

from compress.report.energy import ESTIMATE, disagreements
from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import RunRecord, load_run
from tests.report.test_run_page import Reader
from tests.report.tiny_run import write_tiny_run


def run_of(folder: Path, energies: list[float | None], speeds: list[float]) -> RunRecord:
    run = load_run(write_tiny_run(folder, ("teacher", "prune", "quantize")))
    for stage, energy, speed in zip(run.stages, energies, speeds, strict=True):
        stage.metrics |= {ESTIMATE: energy, "speedup_vs_teacher": speed}
    return run


def test_each_stage_shows_its_estimate_as_one(tmp_path: Path) -> None:
    run = run_of(tmp_path, [0.4, 0.1234, None], [1.0, 2.0, 4.0])
    page = Reader(run_page(run)).text
    assert "energy, one image, mJan estimate, lower is better" in page
    assert "it compares files, and is no measurement." in page
    rows = [line for line in run_markdown(run).splitlines() if line.startswith(("| stage | top-1 %", "| 0"))][:4]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["mJ, an estimate", "0.400", "0.123", "–"]


def test_a_run_of_before_the_estimate_has_no_column(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path))
    assert "an estimate" not in run_page(run) + run_markdown(run)


def test_less_estimated_energy_with_a_slower_file_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path, [0.4, 0.2, 0.1], [1.0, 2.0, 1.5])
    said = (
        "Estimate and latency disagree: quantize has less estimated energy than prune (0.100 against 0.200 mJ, an "
        "estimate), and is slower (1.50× against 2.00× the teacher's speed)."
    )
    assert disagreements(run) == [said]
    assert said in Reader(run_page(run)).text
    assert said in run_markdown(run)


@pytest.mark.parametrize(
    ("energies", "speeds", "pairs"),
    [
        ([0.4, 0.2, 0.1], [1.0, 2.0, 4.0], []),  # one order
        ([0.4, 0.2, 0.1], [1.0, 2.0, 1.95], []),  # times that are the same within the noise
        ([0.4, 0.2, 0.195], [1.0, 2.0, 1.5], []),  # energies that are
        ([0.4, None, 0.1], [1.0, 9.0, 1.5], []),
        ([0.1, 0.2, 0.4], [1.0, 2.0, 4.0], ["teacher prune", "teacher quantize", "prune quantize"]),
        ([0.4, 0.1, 0.2], [1.0, 1.5, 2.0], ["prune quantize"]),
    ],
)
def test_only_a_clear_difference_in_opposite_orders_is_a_disagreement(
    tmp_path: Path, energies: list[float | None], speeds: list[float], pairs: list[str]
) -> None:
    said = disagreements(run_of(tmp_path, energies, speeds))
    found = [text.split(": ")[1].split(" (")[0].replace(" has less estimated energy than", "") for text in said]
    assert found == pairs
