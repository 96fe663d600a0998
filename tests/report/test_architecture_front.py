"""The report of an architecture search: the front as a table and a chart, and what was taken."""

from pathlib import Path
from typing import Any

import pytest

from compress.report.architecture_front import architecture_front
from compress.report.html import run_page
from compress.report.pruning import prunings
from compress.utils.metric import TOP1
from tests.report.pruning_notes import FRONT, TARGET, run_with


def test_the_front_is_a_section_of_its_own_name(tmp_path: Path) -> None:
    run = run_with(tmp_path, target=TARGET | {"search": []}, architectures=FRONT)
    (section,) = prunings(run)
    assert (section.title, section.anchor) == ("Architecture search", "architecture-search")
    page = run_page(run).replace("\u00a0", " ")
    assert 'href="#architecture-search"' in page
    assert 'id="architecture-search"' in page
    assert page.count('class="mark tried"') == len(FRONT["tried"])
    assert page.count('class="mark chosen"') >= 1
    assert (
        "Of 200 sub-networks the one that was taken has 49.0 % of the MACs and 85.25 % validation top-1 before "
        "fine-tuning. It has 2 blocks less." in page
    )


def test_rows_are_the_networks_of_the_front_and_the_taken_one_is_marked() -> None:
    front = architecture_front(FRONT, TOP1)
    assert front is not None
    assert front.taken == 1
    assert front.rows[1] == ["2", "49.0 % (980 k)", "39.2 % (98.0 k)", "98.0 %", "85.25 %", "0.200", "2", "0"]
    assert len(front.heads) == len(front.rows[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"picked": True}, "the one that was picked"),
        ({"taken": None}, "It has 1 smaller kernels and images of 24 pixels a side."),
    ],
)
def test_what_else_was_taken_is_told(change: dict[str, Any], told: str) -> None:
    candidate = {"left": [8], "without": [], "kernels": {"conv": 3}, "input_size": 24}
    extra = FRONT["front"][1] | {"number": None, "candidate": candidate}
    front = architecture_front(FRONT | {"front": [*FRONT["front"], extra]} | change, TOP1)
    assert front is not None
    assert told in front.takeaway
    assert front.rows[3][0] == "fitted to its file"
    assert front.heads[-1] == "input, pixels a side"
    assert front.rows[3][-1] == "24"


def test_without_a_search_there_is_none() -> None:
    assert architecture_front(None, TOP1) is None
