"""Fills the templates: writes a single HTML file that needs no other file and no connection."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress.report import verdict
from compress.report.box_pictures import box_gallery
from compress.report.classification import class_figures
from compress.report.detection import box_figures, nms_rows
from compress.report.energy import disagreements, energy_rows
from compress.report.exits import exits
from compress.report.gallery import gallery
from compress.report.layer_charts import profile_chart, sensitivity_chart, width_chart
from compress.report.multilabel import label_figures
from compress.report.pruning import prunings
from compress.report.run_files import RunRecord
from compress.report.screening import screening
from compress.report.settings import changed_settings, command, digests, versions
from compress.report.stage_table import (
    AGREEMENTS,
    TESTS,
    cautions,
    kept_epochs,
    key_figures,
    left_out,
    stage_rows,
    trade_offs,
    unavailable,
)
from compress.utils.units import setting_text

_TEMPLATES = Path(__file__).parent / "templates"
_BEFORE_A_UNIT = re.compile(r"(?<=\d) (?=(?:%|ms|nats|[KMG]iB|[kMG]\b))")


def run_page(run: RunRecord) -> str:
    """Returns report.html of one run."""
    return render(
        "run.html.j2",
        run=run,
        verdict=verdict.verdict(run),
        basis=verdict.basis(run),
        key_figures=key_figures(run),
        rows=stage_rows(run),
        agreement=AGREEMENTS[run.last.metric.key],
        p_value_test=TESTS[run.last.metric.p_value],
        energy=energy_rows(run),
        disagreements=disagreements(run),
        cautions=cautions(run),
        kept_epochs=kept_epochs(run),
        unavailable=unavailable(run),
        trade_offs=trade_offs(run),
        widths=width_chart(run),
        prunings=prunings(run),
        exits=exits(run),
        profile=profile_chart(run),
        sensitivity=sensitivity_chart(run.last.sensitivity),
        classes=class_figures(run),
        labels=label_figures(run),
        screening=screening(run),
        boxes=box_figures(run),
        nms=nms_rows(run),
        gallery=gallery(run),
        box_gallery=box_gallery(run),
        left_out=left_out(run),
        command=command(run),
        settings=changed_settings(run),
        versions=versions(run),
        digests=digests(run),
    )


def sensitivity_page(table: dict[str, Any], stage: str) -> str:
    """Returns a page with the chart of sensitivity.json, as it is on the page of a run."""
    return render("sensitivity.html.j2", sensitivity=sensitivity_chart(table), stage=stage)


def render(template: str, script: str = "", **values: Any) -> str:
    """Fills a template and inlines the style and, if named, the script; every value is escaped.

    The page's content security policy blocks all loading and every other script, whatever the files of a run contain.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_keep_units,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": verdict.signed, "percent": verdict.percent, "setting": setting_text}
    code = _read(script) if script else ""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if code:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    return environment.get_template(template).render(
        style=Markup(_read("style.css")), script=Markup(code), policy=policy, **values
    )


def _keep_units(value: Any) -> Any:
    """Returns text in which no line breaks between a number and its unit."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _BEFORE_A_UNIT.sub("\N{NO-BREAK SPACE}", value)
    return value


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
