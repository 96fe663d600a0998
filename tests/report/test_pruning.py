"""The section on pruning to a target: its figures and units, and what it does without some of the notes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.pruning import Pruning, prunings, target_sentences
from compress.report.run_files import RunRecord, load_run
from compress.report.write import write_report
from tests.report.browser import CHROMIUM, Page, browser
from tests.report.pruning_notes import STEPS, TARGET, run_with, sensitivity, with_notes


def page_text(run: RunRecord) -> str:
    return run_page(run).replace("\u00a0", " ")


def section(run: RunRecord) -> Pruning:
    (found,) = prunings(run)
    return found


def sentences(folder: Path, **changes: Any) -> list[str]:
    return target_sentences(run_with(folder, target=TARGET | changes))


def test_what_was_asked_reached_and_predicted_is_one_sentence(tmp_path: Path) -> None:
    run = run_with(tmp_path, target=TARGET)
    told = "Asked for at most 4.00 ms an image; reached 3.91 ms, predicted 3.84 ms (1.8 % less)."
    assert target_sentences(run) == [told]
    assert told in page_text(run)
    assert run_markdown(run).count(told) == 1


@pytest.mark.parametrize(
    ("key", "asked", "told"),
    [
        ("macs_share", 0.5, "Asked for at most 50.0 % of the MACs; reached 49.7 % (61.2 M)."),
        ("estimated_energy_share", 0.5, "Asked for at most 50.0 % of the estimated energy; reached 49.3 %."),
        ("params_share", 0.5, "Asked for at most 50.0 % of the parameters; reached 48.0 % (410 k)."),
        ("speedup", 1.5, "Asked for at least 1.50 times the teacher's speed; reached 1.90 times."),
        ("max_drop_points", 0.5, "Asked for at most 0.50 points lost on validation before fine-tuning; reached 0.40"),
    ],
)
def test_each_target_has_its_unit(tmp_path: Path, key: str, asked: float, told: str) -> None:
    taken = {"drop_points": 0.4, "estimated_energy_share": 0.493}
    (sentence,) = sentences(tmp_path, asked={key: asked}, reached=TARGET["reached"] | taken)
    assert sentence.startswith(told)
    assert "over the target" not in sentence


def test_a_size_that_was_not_measured_is_called_predicted(tmp_path: Path) -> None:
    (sentence,) = sentences(tmp_path, asked={"size_bytes": 1_048_576}, predicted={"size_bytes": 786_432})
    assert sentence == "Asked for at most 1.00 MiB for the file; predicted 768 KiB, and not measured."


def test_a_figure_without_a_value_is_said_to_lack(tmp_path: Path) -> None:
    assert sentences(tmp_path, asked={"max_drop_points": 1.0})[0].endswith("; it was not measured.")


@pytest.mark.parametrize(
    ("key", "asked", "miss"),
    [
        ("latency_ms", 3.0, "reached 3.91 ms, 30.3 % over the target, predicted"),
        ("macs_share", 0.48, "reached 49.7 % (61.2 M), 1.70 points over the target."),
        ("speedup", 3.8, "reached 1.90 times, 50.0 % under the target."),
        ("max_drop_points", 0.25, "reached 0.40 points, 0.15 points over the target."),
    ],
)
def test_a_missed_target_says_by_how_much(tmp_path: Path, key: str, asked: float, miss: str) -> None:
    """A difference of shares is one of points, a difference of times one in percent."""
    (sentence,) = sentences(tmp_path, asked={key: asked}, reached=TARGET["reached"] | {"drop_points": 0.4})
    assert miss in sentence


def test_a_file_that_ships_and_misses_the_target_is_named(tmp_path: Path) -> None:
    run = run_with(tmp_path, target=TARGET)
    run.last.metrics["latency_ms_p50"] = 4.4
    told = "The file that ships, 04_quantize/model.onnx, is at 4.40 ms, 10.0 % over the target."
    assert target_sentences(run)[0].endswith(told)
    run.unfinished = ["export"]
    assert "ships" not in target_sentences(run)[0]
    assert "file that ships" not in page_text(run)


def test_all_targets_that_were_set_have_a_sentence_and_a_row(tmp_path: Path) -> None:
    asked = {"macs_share": 0.5, "params_share": 0.5, "latency_ms": 4.0}
    found = section(run_with(tmp_path, target=TARGET | {"asked": asked})).target
    assert len(found.sentences) == 3
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["MACs, one image", "parameters", "latency, one image", "speed, against the teacher"]
    latency = rows["latency, one image"]
    assert (latency.asked, latency.reached, latency.predicted) == ("at most 4.00 ms", "3.91 ms", "3.84 ms")
    assert (latency.difference, latency.deployed) == ("−1.8 %", "0.500 ms")
    assert rows["speed, against the teacher"].asked == "–"
    assert rows["MACs, one image"].deployed == "25.0 %"


def test_predicted_columns_are_there_only_with_a_prediction(tmp_path: Path) -> None:
    page = page_text(run_with(tmp_path / "with", target=TARGET))
    assert "predicted against" in page
    plain = TARGET | {"predicted": {}, "measured": {}, "asked": {"macs_share": 0.5}}
    assert "predicted against" not in page_text(run_with(tmp_path / "without", target=plain))


def test_each_try_has_a_row_and_the_network_taken_the_last_one(tmp_path: Path) -> None:
    run = run_with(tmp_path, target=TARGET)
    search = section(run).target.search
    assert search.takeaway == "The search made 3 tries in 12 s; 2 met the target."
    assert search.heads == ["try", "position", "MACs, one image", "latency, one image", "meets the target"]
    assert search.rows == [
        ["1", "0", "100.0 %", "8.10 ms", "no"],
        ["2", "1", "10.0 %", "1.20 ms", "yes"],
        ["3", "0.5", "49.0 %", "3.80 ms", "yes"],
        ["taken", "–", "49.7 %", "3.91 ms", "yes"],
    ]
    assert "without a position" not in page_text(run)
    assert '<tr class="chosen"><th scope="row">taken</th>' in page_text(run)


def test_a_try_without_a_position_is_explained(tmp_path: Path) -> None:
    check = {"position": None, "macs_share": 0.49, "latency_ms": 4.2, "met": False}
    run = run_with(tmp_path, target=TARGET | {"search": [*TARGET["search"], check]})
    assert section(run).target.search.rows[3] == ["4", "–", "49.0 %", "4.20 ms", "no"]
    assert "A try without a position" in page_text(run)


@pytest.mark.parametrize(("tries", "is_open"), [(1, True), (12, True), (13, False)])
def test_a_table_of_many_tries_is_closed(tmp_path: Path, tries: int, is_open: bool) -> None:
    run = run_with(tmp_path, target=TARGET | {"search": TARGET["search"][:1] * tries, "seconds": None})
    search = section(run).target.search
    assert search.takeaway == f"The search made {tries} {'try' if tries == 1 else 'tries'}; none met the target."
    assert len(search.rows) == tries + 1
    assert ("<details open>" in page_text(run)) == is_open


def test_a_target_without_tries_has_no_table_of_them(tmp_path: Path) -> None:
    run = run_with(tmp_path, target=TARGET | {"search": []})
    assert section(run).target.search is None
    assert "How it was found" not in page_text(run)


@pytest.mark.parametrize(("times", "is_open"), [(1, True), (5, False)])
def test_a_table_of_many_steps_is_closed(tmp_path: Path, times: int, is_open: bool) -> None:
    run = run_with(tmp_path, steps=STEPS * times)
    assert len(section(run).steps.rows) == 3 * times
    assert ("<details open>" in page_text(run)) == is_open


def test_the_widths_are_drawn_once(tmp_path: Path) -> None:
    page = page_text(run_with(tmp_path / "with", target=TARGET, sensitivity=sensitivity(2), steps=STEPS))
    assert page.count("16 → 8") == 1
    assert ('<section id="pruning">' in page, '<section id="widths">' in page) == (True, False)
    assert ('href="#pruning"' in page, 'href="#widths"' in page) == (True, False)
    for head in ("How it was found", "Widths before and after", "What each group of layers costs", "Step by step"):
        assert head in page


@pytest.mark.parametrize("notes", [{}, {"filters": {"conv": [16, 8]}, "unexplained_share": {"conv": 0.1}}])
def test_a_run_without_the_notes_has_no_section(tmp_path: Path, notes: dict[str, Any]) -> None:
    run = run_with(tmp_path, **notes)
    page = page_text(run)
    assert prunings(run) == []
    assert target_sentences(run) == []
    assert ('id="pruning"' in page, '<section id="widths">' in page) == (False, True)
    assert "Asked for" not in run_markdown(run)


def test_each_note_alone_has_its_part(tmp_path: Path) -> None:
    whole = {"target": TARGET, "sensitivity": sensitivity(1), "steps": STEPS}
    for name, note in whole.items():
        run = run_with(tmp_path / name, **{name: note})
        found, page = section(run), page_text(run)
        assert [found.target is None, found.curves is None, found.steps is None] == [name != key for key in whole]
        assert [mark in page for mark in ("Shares are of", 'class="groups"', "Figures of the steps")] == [
            name == key for key in whole
        ]


def test_names_of_layers_are_never_markup(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    note = sensitivity(2)
    note["groups"][0]["layers"] = [evil, evil]
    page = page_text(run_with(tmp_path, sensitivity=note))
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=&#34;alert(1)&#34;&gt;") >= 3


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package: chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_sixty_groups_fit_a_screen(tab: Page, tmp_path: Path, width: int) -> None:
    """Charts stand beside each other, and no text in them is smaller than 10 pixels."""
    note = sensitivity(60)
    note["groups"][0]["layers"] = ["a_layer_with_a_name_that_no_chart_is_as_wide_as_and_that_has_no_space"]
    tab.open(write_report(with_notes(tmp_path, target=TARGET, sensitivity=note, steps=STEPS)), width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.complaints() == []
    places = "[...document.querySelectorAll('.groups li')].map(item => item.getBoundingClientRect().x)"
    assert len(set(tab.value(places))) == (2 if width == 390 else 5)
    letters = "[...document.querySelectorAll('.groups text')].map(text => 12 * text.getScreenCTM().a)"
    assert min(tab.value(letters)) >= 10


RANKS = [
    {"layer": "conv", "kind": "spatial_svd", "ranks": [8], "of": 24},
    {"layer": "other", "kind": "tucker2", "ranks": [8, 16], "of": 32},
]
RANK_GROUPS = [{"layers": ["conv"], "ranks": 24, "left": 8, "curve": [[24, 0.0], [16, 0.01], [8, 0.1]]}]
RANK_SENSITIVITY = {"images": 256, "distance": "nats", "seconds": 9.0, "groups": RANK_GROUPS}


def test_a_factorized_network_has_ranks_in_place_of_filters(tmp_path: Path) -> None:
    run = run_with(tmp_path, target=TARGET, ranks=RANKS, sensitivity=RANK_SENSITIVITY)
    found, page = section(run), page_text(run)
    assert found.ranks.rows == [("conv", "spatial svd", "8 of 24"), ("other", "tucker2", "8, 16 of 32")]
    assert found.ranks.takeaway == (
        "2 layers were replaced by factors. On average they have 42 % of the rank from which on no MAC is saved: conv "
        "the least, 8 of 24; other the most, 16 of 32."
    )
    assert found.ranks.takeaway in page
    assert "factorized alone at several ranks" in found.curves.takeaway
    assert found.curves.groups[0].caption == "8 of 24 ranks"
    assert ('<section id="factorization">' in page, '<section id="pruning">' in page) == (True, False)
    assert '<section id="widths">' in page


def test_a_single_layer_with_factors_is_named(tmp_path: Path) -> None:
    found = section(run_with(tmp_path, ranks=RANKS[:1]))
    assert found.ranks.takeaway == "conv was replaced by factors of rank 8; from 24 on they save no MAC."


def test_factorization_that_changed_nothing_is_still_called_so(tmp_path: Path) -> None:
    found = section(run_with(tmp_path, target=TARGET, ranks=[]))
    assert (found.title, found.ranks) == ("Factorization", None)


@pytest.fixture
def pruned_and_factorized(tmp_path: Path) -> RunRecord:
    """The stage 03 has a target too, and got the half of the teacher's MACs that pruning left."""
    notes = {"target": TARGET | {"asked": {"macs_share": 0.5, "latency_ms": 4.0}}, "ranks": RANKS}
    with_notes(tmp_path, target=TARGET | {"asked": {"macs_share": 0.6}}, sensitivity=sensitivity(2))
    return load_run(with_notes(tmp_path, "03_distill", **notes, sensitivity=RANK_SENSITIVITY))


def test_two_stages_with_targets_have_a_section_each(pruned_and_factorized: RunRecord) -> None:
    page = page_text(pruned_and_factorized)
    assert [found.title for found in prunings(pruned_and_factorized)] == ["Pruning", "Factorization"]
    for mark in ('<section id="pruning">', '<section id="factorization">', "Target of pruning", "Target of factorizat"):
        assert page.count(mark) == 1
    assert page.count("Widths before and after") == 1
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_sentences_of_two_targets_say_whose_they_are(pruned_and_factorized: RunRecord) -> None:
    found = target_sentences(pruned_and_factorized)
    assert [text.partition(";")[0] for text in found] == [
        "Pruning was asked for at most 60.0 % of the MACs",
        "Factorization was asked for at most 50.0 % of the MACs",
        "Factorization was asked for at most 4.00 ms an image",
    ]
    for section in prunings(pruned_and_factorized):
        assert all(text.startswith("Asked for") for text in section.target.sentences)
    assert all(text in run_markdown(pruned_and_factorized) for text in found)


def test_shares_of_the_file_that_ships_are_of_what_the_stage_was_given(pruned_and_factorized: RunRecord) -> None:
    run = pruned_and_factorized
    macs = [stage.metrics["macs"] for stage in run.stages]
    assert macs[0] > macs[1]
    shares = [section.target.rows[0].deployed for section in prunings(run)]
    assert shares == [f"{100 * macs[-1] / before:.1f} %" for before in macs[:2]]
    assert shares[0] != shares[1]
    run.last.metrics["macs"] = 30_000
    assert target_sentences(run)[1].endswith("is at 60.0 %, 10.00 points over the target.")
