"""The pages in a real browser: nothing fails, every picture is there, and a phone scrolls one way only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.report.write import write_report
from tests.report.browser import CHROMIUM, Page, browser
from tests.report.tiny_run import write_tiny_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package: chromium)"),
]

LONG = "a_class_with_a_name_that_no_line_of_a_phone_can_hold_and_that_has_no_space"
PICTURES = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
COLOUR = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with long names, one with many classes, a teacher alone, and a sweep."""
    folder = tmp_path_factory.mktemp("pages")
    many = tuple(f"class {at}" for at in range(100))
    found = {
        "run": write_report(write_tiny_run(folder / "run", classes=(LONG, "dog", "cow"), settings={"data.root": LONG})),
        "classes": write_report(write_tiny_run(folder / "classes", classes=many)),
        "teacher": write_report(write_tiny_run(folder / "teacher", stages=("teacher",), extras=False)),
    }
    for name, ratio, speed in (("0", 0.9, 1.0), ("1", 0.1, 3.0), (f"{LONG}=2", 0.5, 2.0)):
        run = write_tiny_run(folder / "sweep" / name, settings={"prune.ratio": ratio}, latency_ms_p50=speed)
        write_report(run)
    return found | {"sweep": write_report(folder / "sweep")}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["run", "classes", "teacher", "sweep"])
def test_a_page_is_whole(tab: Page, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    tab.open(pages[name], width, dark=dark)
    pictures = tab.value(PICTURES)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert all(pictures)
    assert bool(pictures) == (name in ("run", "classes"))
    assert tab.value(COLOUR) == ("rgb(17, 19, 22)" if dark else "rgb(251, 251, 250)")
    assert tab.complaints() == []
    assert tab.requests() == []


def test_the_browser_tells_faults(tab: Page, tmp_path: Path) -> None:
    """What the test above would miss were the browser deaf."""
    body = '<img src="data:image/png;base64,AAAA"><p style="width: 600px">wide</p><script>fail()</script>'
    (tmp_path / "bad.html").write_text(f'<meta name="viewport" content="width=device-width">{body}')
    tab.open(tmp_path / "bad.html", 390)
    assert tab.complaints()
    assert tab.value(PICTURES) == [False]
    assert tab.value("document.documentElement.scrollWidth") > 390


def test_a_script_from_a_file_would_not_run(tab: Page, pages: dict[str, Path], tmp_path: Path) -> None:
    """The page's policy holds even where escaping were to fail."""
    page = pages["sweep"].read_text().replace("</main>", "<script>document.title = 'run'</script></main>")
    (tmp_path / "page.html").write_text(page)
    tab.open(tmp_path / "page.html", 1280)
    assert tab.value("document.title") != "run"
    assert "Content Security Policy" in " ".join(tab.complaints())


def test_the_table_is_sorted_by_click_and_by_key(tab: Page, pages: dict[str, Path]) -> None:
    tab.open(pages["sweep"], 1280)
    column = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[2].textContent)"
    head = "document.querySelectorAll('thead th')[2]"
    assert tab.value(column) == ["0.9", "0.1", "0.5"]
    tab.value(f"{head}.querySelector('button').click()")
    assert tab.value(column) == ["0.1", "0.5", "0.9"]
    assert tab.value(f"{head}.ariaSort") == "ascending"
    tab.value(f"{head}.querySelector('button').focus()")
    tab.press("Enter")
    assert tab.value(column) == ["0.9", "0.5", "0.1"]
    assert tab.value(f"{head}.ariaSort") == "descending"


def test_a_point_leads_to_its_runs_page(tab: Page, pages: dict[str, Path]) -> None:
    tab.open(pages["sweep"], 1280)
    links = tab.value("[...document.querySelectorAll('svg a')].map(link => link.href.baseVal)")
    assert len(set(links)) == 3
    assert all((pages["sweep"].parent / link.replace("%3D", "=")).is_file() for link in links)


def test_a_run_prints(tab: Page, pages: dict[str, Path]) -> None:
    tab.open(pages["run"], 1280, dark=True)
    assert tab.pdf().startswith(b"%PDF")
