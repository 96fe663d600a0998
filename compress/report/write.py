"""Writes the report of a folder: of the run that it is, or of the runs in it."""

from pathlib import Path

from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import is_run, load_run
from compress.report.sweep import load_sweep, sweep_markdown, sweep_page
from compress.utils.errors import UserError

HTML, MARKDOWN = "report.html", "report.md"


def write_report(folder: Path) -> Path:
    """Writes report.html and report.md of a run, or of all runs below `folder`; returns the path of report.html.

    Raises UserError where there is no run, a file of a run cannot be read, or the pages cannot be written.
    """
    if not folder.is_dir():
        raise UserError(str(folder), "a folder that exists", "name a run's folder, or one with runs in it")
    return write_run(folder) if is_run(folder) else write_sweep(folder)


def write_run(folder: Path) -> Path:
    """Writes the pages of one run; returns the path of report.html."""
    run = load_run(folder)
    return _write(folder, run_page(run), run_markdown(run))


def write_sweep(folder: Path) -> Path:
    """Writes the pages that compare all runs below `folder`; returns the path of report.html."""
    sweep = load_sweep(folder, HTML)
    return _write(folder, sweep_page(sweep), sweep_markdown(sweep))


def _write(folder: Path, html: str, markdown: str) -> Path:
    try:
        (folder / HTML).write_text(html, encoding="utf-8")
        (folder / MARKDOWN).write_text(markdown, encoding="utf-8")
    except OSError as error:
        raise UserError(str(error), "a folder that can be written, and room in it", "free space or move it") from error
    return folder / HTML
