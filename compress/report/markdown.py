"""Writes report.md: the content of the page in a form that fits a comment on a pull request."""

from collections.abc import Iterable, Sequence

from compress.report import verdict
from compress.report.classification import class_figures
from compress.report.detection import box_figures, nms_rows
from compress.report.energy import disagreements, energy_rows
from compress.report.exits import exits
from compress.report.gallery import disagreement
from compress.report.layer_charts import profile_chart, sensitivity_chart, width_chart
from compress.report.multilabel import label_figures
from compress.report.pruning import target_sentences
from compress.report.run_files import RunRecord
from compress.report.screening import screening
from compress.report.settings import changed_settings, command, versions
from compress.report.stage_table import cautions, kept_epochs, left_out, stage_rows, unavailable
from compress.utils.units import setting_text

_SHOWN = 10  # rows in a list; the page has all


def run_markdown(run: RunRecord) -> str:
    """Returns report.md of one run."""
    parts = [f"## {escape(verdict.verdict(run))}", escape(verdict.basis(run))]
    if run.unfinished:
        parts.append(f"**This run is not finished.** Still to come: {escape(', '.join(run.unfinished))}.")
    parts += [f"**{escape(remark)}**" for remark in (*run.remarks, *cautions(run))]
    parts += [
        _stages(run),
        escape(" ".join(target_sentences(run))),
        escape(" ".join(disagreements(run))),
        _with_nms(run),
        escape(" ".join(kept_epochs(run))),
        _energy(run),
    ]
    parts += [_not_taken(names, cause) for names, cause in unavailable(run)]
    parts += [
        _classes(run),
        _labels(run),
        _screening(run),
        _boxes(run),
        escape(disagreement(run)),
        _widths(run),
        _exits(run),
        _time(run),
        _sensitivity(run),
        _seeds(run),
        _controls(run),
    ]
    parts += [_repeat(run), _left_out(run), bullets(run.absent, "Not in this report")]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """Returns a table of escaped cells; the first `text_columns` are aligned left, the others right."""
    lines = [heads, *rows]
    cells = [f"| {' | '.join(escape(str(cell)) for cell in line)} |" for line in lines]
    rule = ["---" if at < text_columns else "---:" for at in range(len(heads))]
    return "\n".join([cells[0], f"| {' | '.join(rule)} |", *cells[1:]])


def escape(text: str) -> str:
    """Escapes text, so that nothing is HTML, ends a cell of a table, or starts a link or emphasis."""
    for letter in "\\`*[]|":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def bullets(lines: Sequence[str], title: str) -> str:
    """Returns a collapsed list; an empty text without lines."""
    return fold(title, "\n".join(f"- {escape(line)}" for line in lines)) if lines else ""


def fold(title: str, content: str) -> str:
    """Returns collapsed content that a reader can open."""
    return f"<details><summary>{escape(title)}</summary>\n\n{content}\n\n</details>"


def code(text: str) -> str:
    """Returns a code block, fenced by more backticks than the text has in a row."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}bash\n{text}\n{fence}"


def _stages(run: RunRecord) -> str:
    rows = stage_rows(run)
    heads = (
        "stage",
        f"{run.last.metric.label} %",
        "95 % interval",
        *(["mAP %"] if rows[0].map_percent else []),
        "points",
        "95 % interval",
        "p",
        "size",
        "smaller",
        "ms",
        "faster",
        "MACs",
        *(["mJ, an estimate"] if rows[0].energy else []),
    )
    return table(
        heads,
        (
            (
                row.name, row.percent, row.percent_interval, *([row.map_percent] if row.map_percent else []),
                row.delta, row.delta_interval, row.p_value,
                row.size, row.smaller, row.latency, row.faster, row.macs, *([row.energy] if row.energy else []),
            )
            for row in rows
        ),
    )  # fmt: skip


def _energy(run: RunRecord) -> str:
    rows = [(row.name, row.image_mj, row.training_wh, row.training_co2_g) for row in energy_rows(run)]
    heads = ("stage", "mJ an image, counted", "Wh to compute it, an estimate", "g CO₂, an estimate")
    return fold("Energy", table(heads, rows)) if rows else ""


def _not_taken(names: list[str], cause: str) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f"{listed} {'was' if len(names) == 1 else 'were'} not taken: {escape(cause)}."


def _labels(run: RunRecord) -> str:
    found = label_figures(run)
    if found is None:
        return ""
    heads = ("label", "images", "AUROC %", "95 % interval", "teacher %")
    rows = ((row.name, row.images, row.auroc, row.auroc_interval, row.teacher) for row in found.rows)
    return f"{escape(found.takeaway)}\n\n{fold('AUROC of each label', table(heads, rows))}"


def _classes(run: RunRecord) -> str:
    found = class_figures(run)
    if found is None:
        return ""
    mistakes = table(
        ("class", "taken for", "images", "of", "by the teacher"),
        ((row.label, row.taken_for, row.images, row.of, row.teacher_images) for row in found.mistakes),
        text_columns=2,
    )
    losses = table(
        ("class", "images", "teacher %", f"{run.last.short} %", "points lost"),
        (
            (row.name, row.images, f"{row.teacher_percent:.1f}", f"{row.percent:.1f}", f"{row.points_lost:.1f}")
            for row in found.losses
        ),
    )
    parts = [escape(f"{found.takeaway} {found.loss_takeaway}".strip())]
    parts += [fold("Classes that lost most", losses)] if found.losses else []
    parts += [fold("Most frequent mistakes", mistakes)] if found.mistakes else []
    return "\n\n".join(parts)


def _screening(run: RunRecord) -> str:
    found = screening(run)
    if found is None:
        return ""
    heads = ("class", "images", "teacher's recall %", "recall %", "precision %", "F1 %")
    rows = ((row.name, row.images, row.teacher_recall, row.recall, row.precision, row.f1) for row in found.rows)
    parts = [escape(f"{found.takeaway} {found.confidence}".strip())]
    parts += [fold("Each class", table(heads, rows))] if found.rows else []
    points = ((row.name, row.images, row.sensitivity, row.specificity) for row in found.points)
    if found.points:
        title = f"Sensitivity where {found.specificity} % specificity was asked for"
        parts.append(fold(title, table(("class", "images", "sensitivity %", "specificity %"), points)))
    return "\n\n".join(parts)


def _with_nms(run: RunRecord) -> str:
    rows = [
        (f"{row.stage}/{row.file}", row.percent, row.size, row.latency, row.latency_p95, row.latency_without)
        for row in nms_rows(run)
    ]
    heads = ("file with non-maximum suppression", "mAP50 %", "size", "ms", "p95", "model.onnx ms")
    return table(heads, rows) if rows else ""


def _boxes(run: RunRecord) -> str:
    found = box_figures(run)
    if found is None:
        return ""
    classes = table(
        ("class", "objects", "AP50 %", "95 % interval", "AP %", "teacher AP50 %", "teacher AP %"),
        (
            (row.name, row.objects, row.ap50, row.ap50_interval, row.ap, row.teacher_ap50, row.teacher_ap)
            for row in found.rows
        ),
    )
    sizes = table(
        ("class", "size", "objects", "found by the teacher", f"found by {run.last.short}", "lost", "gained"),
        (
            (row.name, row.size, row.objects, row.teacher_found, row.found, row.lost, row.gained)
            for row in found.sizes
        ),
        text_columns=2,
    )  # fmt: skip
    parts = [escape(found.takeaway), fold("Average precision of each class", classes), escape(found.found_takeaway)]
    parts += [fold("Objects lost and gained", sizes)] if found.sizes else []
    return "\n\n".join(parts)


def _widths(run: RunRecord) -> str:
    chart = width_chart(run)
    if chart is None:
        return ""
    rows = ((bar.name, bar.value) for bar in chart.bars)
    return f"{escape(chart.takeaway)}\n\n{fold('Output channels before and after', table(('layer', 'channels'), rows))}"


def _exits(run: RunRecord) -> str:
    found = exits(run)
    if found is None:
        return ""
    ends = table(
        ("leaves", "share of the images", "right of these", "MACs", "confidence from which", "temperature"),
        ((row.name, row.share, row.percent, row.macs, row.threshold, row.temperature) for row in found.rows),
    )
    times = table(("file", "mean", "median", "p95"), found.times)
    return "\n\n".join([escape(found.takeaway), ends, fold("Latency with exits and without", times)])


def _time(run: RunRecord) -> str:
    chart = profile_chart(run)
    if chart is None:
        return ""
    rows = ((bar.name, bar.note, bar.value) for bar in chart.bars[:_SHOWN])
    return f"{escape(chart.takeaway)}\n\n{fold('The slowest nodes', table(('node', 'operator', 'time'), rows, 2))}"


def _sensitivity(run: RunRecord) -> str:
    chart = sensitivity_chart(run.last.sensitivity)
    if chart is None:
        return ""
    rows = ((bar.name, bar.note or "int8", bar.value) for bar in chart.bars)
    layers = fold("What each layer costs as int8", table(("layer", "runs as", chart.scale), rows, 2))
    return f"{escape(chart.takeaway)}\n\n{layers}"


def _seeds(run: RunRecord) -> str:
    if run.repeats is None:
        return ""
    key = run.last.metric.key
    rows = []
    for row in run.repeats["stages"]:
        latency = "latency_ms_mean" if "latency_ms_mean" in row["figures"] else "latency_ms_p50"
        figures = [row["figures"][name] for name in (f"deployed_{key}_percent", f"{key}_delta_points", latency)]
        rows.append((row["stage"], *(f"{figure['mean']:.2f} ± {figure['std']:.2f}" for figure in figures)))
    return f"Over {len(run.repeats['seeds'])} seeds:\n\n" + table(
        ("stage", f"{run.last.metric.label} %", "points", "ms"), rows
    )


def _controls(run: RunRecord) -> str:
    if run.controls is None:
        return ""
    rows = (
        (
            row["name"].replace("_", " "), row["against"], row["what"], f"{run.last.metric.percent(row):.2f}",
            verdict.signed(row["delta_points"]), verdict.interval(*row["delta_ci95_points"]),
        )
        for row in run.controls["controls"]
    )  # fmt: skip
    heads = ("control", "against", "what it is", f"{run.last.metric.label} %", "points", "95 % interval")
    budget = f"Plainer ways to a network as small, {run.controls['budget_epochs']} epochs each:"
    left_out = [f"{row['control'].replace('_', ' ')}: {row['reason']}" for row in run.controls["left_out"]]
    return "\n\n".join(filter(None, (budget, table(heads, rows, 3), bullets(left_out, "Left out"))))


def _repeat(run: RunRecord) -> str:
    line = command(run)
    rows = ((row.name, setting_text(row.value), row.default) for row in changed_settings(run))
    settings = table(("setting", "value", "default"), rows, 3)
    named = ", ".join(f"{name} {version}" for name, version in versions(run).items())
    parts = [code(line)] if line else []
    return "\n\n".join(
        [*parts, fold("Settings that are not the default, and versions", f"{settings}\n\n{escape(named)}")]
    )


def _left_out(run: RunRecord) -> str:
    return bullets(
        [f"{stage}: {reason}: {', '.join(layers)}" for stage, reason, layers in left_out(run)],
        "Layers that were left as they are, and why",
    )
