"""The page of a run: whole with all files and with few, true to the files, and safe whatever they hold."""

import base64
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.report.gallery import gallery
from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import load_run
from compress.report.settings import changed_settings, command
from compress.utils.errors import UserError
from tests.report.tiny_run import finish, write_tiny_run

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    *("stages", "trade-off", "widths", "time", "sensitivity", "classes", "images", "seeds", "controls", "repeat"),
}


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str):
        super().__init__()
        self.sections: set[str] = set()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.add(tag)
        if tag == "section":
            self.sections.add(values["id"])
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        assert not any(name.startswith("on") for name in values)

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(folder: Path) -> Reader:
    return Reader(run_page(load_run(folder)))


def written(folder: Path) -> list[str]:
    """The text of the page and of the Markdown file, with plain spaces."""
    return [text.replace("\u00a0", " ") for text in (read_page(folder).text, run_markdown(load_run(folder)))]


def test_a_whole_run_shows_every_section(tmp_path: Path) -> None:
    found = read_page(write_tiny_run(tmp_path))
    assert found.sections == SECTIONS
    for part in ("node_29", "16 → 8", "random pruned", "class cat", "its outputs are the logits", "0.250"):
        assert part in found.text


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    found = read_page(write_tiny_run(tmp_path))
    assert found.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    assert not found.tags & {"script", "link", "iframe", "object"}


def test_a_run_without_the_optional_files_says_what_it_lacks(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path, extras=False)
    for stage in folder.glob("0*"):
        (stage / "predictions.safetensors").unlink()
        finish(stage, {})
    found = read_page(folder)
    assert found.sections == {"stages", "trade-off", "widths", "repeat", "absent"}
    for name in ("predictions.safetensors", "profile.json", "examples.safetensors"):
        assert f"04_quantize has no {name}." in found.text
    assert all(key in found.text for key in ("quantize.max_drop_points", "repeat.seeds", "controls=true"))
    assert "not started from the command line" in found.text


def test_a_teacher_alone_has_a_page(tmp_path: Path) -> None:
    found = read_page(write_tiny_run(tmp_path, stages=("teacher",)))
    assert "nothing has been compressed yet" in found.text
    assert "widths" not in found.sections


@pytest.mark.parametrize("count", [30, 100, 120])
def test_many_classes_have_a_page(tmp_path: Path, count: int) -> None:
    page = run_page(load_run(write_tiny_run(tmp_path, classes=tuple(f"class number {at}" for at in range(count)))))
    assert ("Confusion matrix" in page) == (count <= 100)
    assert len(page) < 200_000


def test_photographs_are_made_small(tmp_path: Path) -> None:
    """Tiny images stay as they are, in PNG; 24 large ones, three pictures each, must not make a page of megabytes."""
    run = load_run(write_tiny_run(tmp_path))
    tiny = gallery(run)
    generator = np.random.default_rng(0)
    for name, shape in (("images", (4, 224, 200, 3)), ("heatmap", (4, 224, 200)), ("teacher_heatmap", (4, 224, 200))):
        run.last.examples[name] = generator.integers(0, 256, shape, dtype=np.uint8)
    large = gallery(run)
    for found, form, size in ((tiny, "PNG", (8, 8)), (large, "JPEG", (143, 160))):
        for picture in found.disagree[0].pictures:
            image = Image.open(io.BytesIO(base64.b64decode(picture.address.partition("base64,")[2])))
            assert (image.format, image.size) == (form, size)
    assert tiny.tiny
    assert not large.tiny


def test_text_from_files_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = load_run(write_tiny_run(tmp_path, classes=(evil, 'dog" onload="x', "c|w"), settings={"data.root": evil}))
    page = run_page(run)
    assert evil not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "script" not in Reader(page).tags
    markdown = run_markdown(run)
    assert "<script>" not in markdown
    assert "c\\|w" in markdown


def test_nulls_show_their_cause(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path))
    assert "peak_memory_bytes was not taken: this system does not tell it." in Reader(run_page(run)).text
    assert "`peak_memory_bytes` was not taken: this system does not tell it." in run_markdown(run)


def test_figures_with_one_cause_share_a_line(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path))
    run.last.metrics["unavailable"] = {"a": "no GPU", "b": "no GPU"}
    run.teacher.metrics["unavailable"] = {"a": "no GPU", "c": "no counter"}
    text = Reader(run_page(run)).text
    assert "a, b were not taken: no GPU." in text
    assert "c was not taken: no counter." in text
    assert "`a`, `b` were not taken: no GPU." in run_markdown(run)


def test_energy_says_what_is_counted_and_what_is_an_estimate(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path, settings={"measure.country": "FRA"}))
    for written in (run_page(run), run_markdown(run)):  # none of it was taken: no row of dashes
        assert "an estimate" not in written
    run.last.metrics |= {"energy_joule_per_image": 0.0123, "training_energy_kwh_estimate": 0.0456}
    run.last.metrics["training_co2_kg_estimate"] = 2e-9
    page = Reader(run_page(run))
    for part in ("12.3", "45.6", "< 0.001", "mJcounted", "Whan estimate", "electricity mix of FRA"):
        assert part in page.text
    last = "| 04_quantize | 12.3 | 45.6 | &lt; 0.001 |"
    assert last in run_markdown(run)
    assert "| 01_teacher | – | – | – |" in run_markdown(run)


def test_files_that_changed_or_went_are_named(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path)
    with (folder / "02_prune" / "metrics.json").open("a") as file:
        file.write(" ")
    (folder / "03_distill" / "profile.json").unlink()
    remarks = load_run(folder).remarks
    assert remarks == [
        "02_prune/metrics.json is not the file that the stage wrote: it was changed since.",
        "03_distill/profile.json is missing.",
    ]
    assert all(remark in read_page(folder).text for remark in remarks)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path)
    (folder / "summary.json").unlink()
    (folder / "04_quantize" / "stage.json").unlink()
    run = load_run(folder)
    assert run.unfinished == ["04_quantize"]
    assert "This run is not finished. Still to come: 04_quantize." in Reader(run_page(run)).text


def test_stages_of_an_earlier_order_are_not_taken_for_this_runs(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path)
    (folder / "summary.json").write_text(json.dumps({"stages": [{"stage": "01_teacher"}, {"stage": "02_prune"}]}))
    assert [stage.name for stage in load_run(folder).stages] == ["01_teacher", "02_prune"]


@pytest.mark.parametrize("name", ["metrics.json", "predictions.safetensors", "profile.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    folder = write_tiny_run(tmp_path)
    (folder / "04_quantize" / name).write_bytes(b"\xff{")
    with pytest.raises(UserError, match=f"04_quantize/{name}, which cannot be read"):
        load_run(folder)


def test_a_noisy_machine_is_named(tmp_path: Path) -> None:
    quiet = read_page(write_tiny_run(tmp_path / "quiet"))
    noisy = read_page(write_tiny_run(tmp_path / "noisy", speedup_vs_teacher=9.0))
    assert "The machine was not quiet" not in quiet.text
    assert "took 2.00\u00a0ms in its own stage and 4.50\u00a0ms in turns" in noisy.text


def change_record(stage: Path, **changes: object) -> None:
    """Writes stage.json anew with these values."""
    record = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(record | changes))


def test_validation_that_the_teacher_has_seen_is_a_caution(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    teacher = tmp_path / "01_teacher"
    assert "probably trained on" not in "".join(written(tmp_path))
    config = json.loads((teacher / "stage.json").read_text())["config"]
    config["teacher"] |= {"checkpoint": "weights.pth", "epochs": 0}
    change_record(teacher, validation={"from": "train", "images": 500}, config=config)
    metrics = json.loads((teacher / "metrics.json").read_text())
    metrics |= {"deployed_val_top1_percent": 100.0, "val_images": 500, "deployed_top1_percent": 60.0}
    (teacher / "metrics.json").write_text(json.dumps(metrics))
    for text in written(tmp_path):
        assert "100.00 % on the 500 validation images and 60.00 % on the 40 test images" in text
        assert "data.val_from=test" in text.replace("\\", "")


def test_the_epoch_that_was_kept_and_the_source_of_validation_are_named(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    change_record(tmp_path / "01_teacher", validation={"from": "test", "images": 10})
    change_record(tmp_path / "03_distill", notes={"kept_epoch": {"epoch": 7, "reason": "the last, and the best"}})
    for text in written(tmp_path):
        assert "distill kept epoch 7, the last, and the best." in text
        assert "the same 40 test images, beside the 10 of that split that served as validation" in text


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    """What was typed, with what the machine had decided pinned; quoted for a shell."""
    run = load_run(write_tiny_run(tmp_path, settings={"prune.ratio": 0.7, "data.root": "my images"}))
    assert command(run) == (
        "python -m compress recipe=mobilenet_int8 'data.root=my images' threads=1 device=cpu quantize.target=x86_vnni"
    )
    assert [(row.name, row.value, row.default) for row in changed_settings(run)] == [
        ("data.root", "my images", "null"),
        ("prune.ratio", "0.7", "0.5"),
    ]


def test_markdown_says_the_same(tmp_path: Path) -> None:
    lines = run_markdown(load_run(write_tiny_run(tmp_path))).splitlines()
    assert lines[0].startswith("## 4.0 times smaller, 4.0 times faster, 2.50 points of top-1 accuracy lost")
    at = next(at for at, line in enumerate(lines) if line.startswith("| stage"))
    table = lines[at : at + 6]
    assert len({line.count("|") for line in table}) == 1
    assert table[-1].startswith("| 04_quantize | 92.50 | 85.00 to 98.00 | −2.50 | −6.00 to 1.00 | 0.250 | 19.5 KiB |")
    assert "python -m compress recipe=mobilenet_int8" in "\n".join(lines)


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "compress.report", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    done = run_command(str(write_tiny_run(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.md").read_text().startswith("## 4.0 times smaller")


def test_a_folder_without_a_run_ends_in_one_line(tmp_path: Path) -> None:
    done = run_command(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("compress: received ")
    assert "Traceback" not in done.stderr
    assert run_command().returncode == 2


def test_reports_are_written_without_torch() -> None:
    code = "import sys, compress.report.__main__; print(sorted({'torch', 'hydra', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
