"""Many runs on one page: every run is there, the fronts are true, and what differs is a column."""

from pathlib import Path

import pytest

from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import load_run
from compress.report.sweep import cautions, load_sweep, sweep_markdown, sweep_page, sweep_rows, sweep_verdict
from compress.report.write import write_report
from compress.utils.errors import UserError
from compress.utils.files import STATUS, write_json
from tests.report.tiny_run import write_tiny_run


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Path:
    """Three runs that finished, one that failed and one that was stopped."""
    floors = {"stop_below.prune": [50.0]}  # a search sets it for its later trials
    write_tiny_run(tmp_path / "0", settings={"prune.ratio": 0.3, **floors}, latency_ms_p50=1.0, size_bytes=50_000)
    write_tiny_run(
        tmp_path / "2",
        delta=(-9.0, -12.0, -6.0),
        settings={"prune.ratio": 0.7},
        latency_ms_p50=0.5,
        size_bytes=20_000,
    )
    write_tiny_run(
        tmp_path / "10",
        delta=(-4.0, -7.0, 0.5),
        settings={"prune.ratio": 0.5, "seed": 1},
        latency_ms_p50=1.5,
        size_bytes=30_000,
    )
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "compress.log").write_text("2026-01-01 00:00:00,000 ERROR compress: of an earlier start\n")
    error = "received prune.ratio=0.94; expected <less>; to mend it: lower it"
    write_json(tmp_path / "3" / STATUS, {"id": "a", "state": "failed", "error": error, "exit": 2})
    stopped = write_tiny_run(tmp_path / "4")
    (stopped / "summary.json").unlink()
    (stopped / "04_quantize" / "stage.json").unlink()
    write_json(stopped / STATUS, {"id": "b", "state": "running"})
    return tmp_path


def test_every_run_is_there_in_the_order_of_the_jobs(sweep_folder: Path) -> None:
    sweep = load_sweep(sweep_folder, "report.html")
    assert [entry.name for entry in sweep.entries] == ["0", "2", "10"]
    assert sweep.failed == [
        ("3", "received prune.ratio=0.94; expected <less>; to mend it: lower it (without a finished stage)"),
        ("4", "it ended without a word: it was killed, or still runs (without 04_quantize)"),
    ]


def test_settings_that_differ_are_columns(sweep_folder: Path) -> None:
    assert load_sweep(sweep_folder, "report.html").differing == ["prune.ratio", "seed"]


def test_a_setting_is_shown_with_four_digits_and_kept_whole(tmp_path: Path) -> None:
    for name, ratio in (("0", 0.6436378296983221), ("1", 0.5)):
        write_tiny_run(tmp_path / name, settings={"prune.ratio": ratio})
    sweep = load_sweep(tmp_path, "report.html")
    cells = [row.cells[0] for row in sweep_rows(sweep)]
    assert [(cell.text, cell.value) for cell in cells] == [("0.6436", 0.6436378296983221), ("0.5", 0.5)]
    assert 'title="0.6436378296983221"' in sweep_page(sweep)
    assert "0.6436378296983221" not in sweep_markdown(sweep)
    run = load_run(tmp_path / "0")
    assert '<td class="text" title="0.6436378296983221">0.6436</td>' in run_page(run)
    assert "| prune.ratio | 0.6436 | 0.5 |" in run_markdown(run)


def test_each_front_is_marked(sweep_folder: Path) -> None:
    rows = sweep_rows(load_sweep(sweep_folder, "report.html"))
    # Run 10 is slower and less accurate than run 0, but smaller.
    assert [row.fronts for row in rows] == ["latency, size", "latency, size", "size"]


def test_the_verdict_names_the_fastest_that_loses_nothing_to_be_told(sweep_folder: Path) -> None:
    assert sweep_verdict(load_sweep(sweep_folder, "report.html")).startswith(
        "Of 3 finished runs, run 0 is the fastest in which no loss of accuracy can be told: 4.0 times faster"
    )


def test_runs_that_all_lose_are_told_so(tmp_path: Path) -> None:
    for name, lost in (("a", 5.0), ("b", 3.0)):
        write_tiny_run(tmp_path / name, delta=(-lost, -lost - 2, -lost + 2))
    assert sweep_verdict(load_sweep(tmp_path, "report.html")).startswith(
        "Of 2 finished runs all lose accuracy; run b loses least, 3.00 points: "
    )


def test_points_lead_to_the_runs_own_pages(sweep_folder: Path) -> None:
    write_report(sweep_folder / "2")
    assert 'href="2/report.html"' in sweep_page(load_sweep(sweep_folder, "report.html"))
    assert 'href="0/report.html"' not in sweep_page(load_sweep(sweep_folder, "report.html"))


def test_figures_of_different_machines_are_not_compared_in_silence(tmp_path: Path) -> None:
    write_tiny_run(tmp_path / "a")
    write_tiny_run(tmp_path / "b", environment={"cpu": "Another", "threads": 4, "versions": {"onnxruntime": "1.23"}})
    assert "A CPU, 1 threads; Another, 4 threads" in sweep_page(load_sweep(tmp_path, "report.html"))


def test_runs_that_were_timed_beside_others_are_named(tmp_path: Path) -> None:
    place = {"cpu": "A CPU", "threads": 1, "versions": {"onnxruntime": "1.23"}}
    for name, beside in (("a", {}), ("b", {"runs_beside": 0}), ("c", {"runs_beside": 3})):
        write_tiny_run(tmp_path / name, environment=place | beside)
    (line,) = cautions(load_sweep(tmp_path, "report.html"))
    assert line.startswith("Up to 3 other runs went on while these were timed: c. ")


def test_both_files_are_written_and_escaped(sweep_folder: Path) -> None:
    assert write_report(sweep_folder) == sweep_folder / "report.html"
    for name in ("report.html", "report.md"):
        text = (sweep_folder / name).read_text()
        assert "expected &lt;less&gt;" in text
        assert "<less>" not in text
    table = [line for line in sweep_markdown(load_sweep(sweep_folder, "report.html")).splitlines() if line[:1] == "|"]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1


def test_a_sweep_in_which_nothing_finished_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "compress.log").write_text("")
    assert "None of the runs here has finished." in sweep_page(load_sweep(tmp_path, "report.html"))


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a run"):
        load_sweep(tmp_path, "report.html")
