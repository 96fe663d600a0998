"""The page of a detection run: its tables, curves and boxes say what the files found, and nothing speaks of top-1."""

import html
import re
from pathlib import Path

import pytest
from markupsafe import Markup

from compress.report.box_drawing import SIDE, DrawnBox, draw
from compress.report.box_pictures import box_gallery
from compress.report.detection import box_figures
from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import load_run
from compress.report.write import write_report
from tests.report.browser import CHROMIUM, browser
from tests.report.detection_run import write_detection_run

NMS = {
    "file": "model_nms.onnx",
    "size_bytes": 81_000,
    "map50_percent": 83.21,
    "latency_ms_p50": 0.77,
    "latency_ms_p95": 0.88,
    "latency_ms_p50_without": 0.55,
}


def plain(page: str) -> str:
    """The text of a page, with single plain spaces."""
    page = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).replace("\u00a0", " ").split())


def written(folder: Path) -> list[str]:
    """The text of the page and of the Markdown file."""
    return [plain(run_page(load_run(folder))), run_markdown(load_run(folder)).replace("\\", "")]


def test_the_stages_have_both_mean_average_precisions(tmp_path: Path) -> None:
    page, markdown = written(write_detection_run(tmp_path))
    assert "04_quantize 83.00 73.00 to 88.00 63.00 −8.50 −20.00 to 3.00 0.125" in page
    assert "| 04_quantize | 83.00 | 73.00 to 88.00 | 63.00 | −8.50 | −20.00 to 3.00 | 0.125 |" in markdown
    for text in (page, markdown):
        assert "8.50 points of mAP50 lost (95 % interval −3.00 to 20.00)" in text


def test_no_sentence_is_about_the_class_of_an_image(tmp_path: Path) -> None:
    folder = write_detection_run(tmp_path, examples=False)
    for text in written(folder):
        assert not re.search("top-1|same class|McNemar|Confusion|Grad-CAM|heatmap|AUROC", text, re.IGNORECASE)
    (folder / "04_quantize" / "predictions.safetensors").unlink()
    for text in written(folder):
        assert "Precision and recall, and lost objects: 04_quantize has no predictions.safetensors" in text
        assert not re.search("top-1|same class|McNemar|Confusion|Grad-CAM|heatmap|AUROC", text, re.IGNORECASE)


def test_the_classes_and_sizes_are_counted(tmp_path: Path) -> None:
    """The crowd is no object; a class without objects has dashes and no curve."""
    found = box_figures(load_run(write_detection_run(tmp_path)))
    assert found is not None
    cat, dog, unseen = found.rows
    assert (cat.objects, dog.objects, unseen.objects) == (6, 6, 0)
    assert (dog.teacher_ap50, dog.ap50, dog.ap50_interval) == ("83.00", "66.00", "46.00 to 76.00")
    assert (dog.teacher_ap, dog.ap) == ("63.00", "46.00")
    assert (unseen.ap50, unseen.ap50_interval, unseen.ap) == ("–", "", "–")
    assert [curve.name for curve in found.curves] == ["cat", "dog"]
    small, large = found.sizes
    assert (small.name, small.size, small.objects, small.lost, small.gained) == ("cat", "small", 6, 0, 0)
    assert (large.size, large.teacher_found, large.found, large.lost, large.gained) == ("large", 5, 4, 2, 1)
    assert found.takeaway == "Class dog is found worst, with an AP50 of 66.00 %. Class dog lost most, 17.00 points."
    assert found.found_takeaway == (
        "A detection counts from a score of 0.5 on. Of 12 objects, the teacher's file finds 11 and has 0 false "
        "detections; quantize's file finds 10 and has 1 false detection. Objects lost: 2; gained: 1."
    )


def test_a_curve_ends_where_no_more_objects_are_found(tmp_path: Path) -> None:
    """Four of six dogs are found: beyond a recall of 66 % the precision is 0. The third of five is false."""
    found = box_figures(load_run(write_detection_run(tmp_path)))
    assert found is not None
    lines = re.findall(r'<path class="curve (\w+)" d="M([^"]*)"><title>([^<]*)', found.curves[1].drawing)
    assert [kind for kind, _, _ in lines] == ["teacher", "chosen"]
    end = lines[1][1].split("L")[-1]
    left, right = 46, 440
    assert float(end.split()[0]) == pytest.approx(left + 0.66 * (right - left), abs=0.1)
    assert lines[1][2] == "quantize: AP50 66.34 %"


def test_the_cards_count_what_each_file_finds(tmp_path: Path) -> None:
    run = load_run(write_detection_run(tmp_path))
    found = box_gallery(run)
    assert found is not None
    assert [card.index for card in found.cards] == [2, 3, 0]
    assert [card.change for card in found.cards] == [
        "1 object lost, 0 gained",
        "1 object lost, 0 gained",
        "both files find the same objects",
    ]
    assert [(panel.caption, panel.count) for panel in found.cards[0].panels] == [
        ("truth", "2 objects"),
        ("teacher", "2 of 2 objects; 0 false"),
        ("quantize", "1 of 2 objects; 0 false"),
    ]
    assert found.cards[2].panels[0].count == "2 objects; 1 not scored"
    assert found.ignored
    assert found.takeaway == "The images in which only one of the two files finds an object come first."
    assert [key.name for key in found.keys] == ["cat", "dog"]


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    """The image has 128 pixels a side and the drawing 320 units: 2.5 for each pixel."""
    found = box_gallery(load_run(write_detection_run(tmp_path)))
    assert found is not None
    truth, teacher, own = (panel.drawing for panel in found.cards[0].panels)
    dog = 'x="50.0" y="50.0" width="250.0" height="260.0"'
    assert all(dog in drawing for drawing in (truth, teacher, own))
    assert '<g class="missed"><title>dog, missed</title>' in own
    assert "missed" not in teacher
    assert ">dog 0.80</text>" in teacher
    assert "dog 0.10" not in teacher
    assert truth.count("data:image/jpeg;base64,") == 1
    assert '<use href="#test-image-2"/>' in own


def test_labels_stay_inside_and_do_not_cover_each_other() -> None:
    """Three boxes in one corner and thirty in one place: labels that have no room are left out."""
    corner = DrawnBox((0.0, 0.0, 6.0, 6.0), "#fff", "a long name", "", "found")
    crowd = DrawnBox((300.0, 100.0, 319.0, 110.0), "#fff", "cat 0.90", "", "found")
    drawing = draw(Markup(""), [corner] * 3 + [crowd] * 30, "title")
    tags = [
        tuple(map(float, place)) for place in re.findall(r'class="tag" x="(\S+)" y="(\S+)" width="(\S+)" h', drawing)
    ]
    assert 2 < len(tags) < 12
    assert all(x >= 0 and y >= 0 and x + width <= SIDE + 0.1 for x, y, width in tags)
    assert len(set(tags)) == len(tags)


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<b>cat</b>&"
    page = run_page(load_run(write_detection_run(tmp_path, classes=(name, "dog", "cow"))))
    assert "<b>cat" not in page
    assert "&lt;b&gt;cat&lt;/b&gt;&amp;" in page


def test_the_file_with_suppression_is_shown_where_it_was_written(tmp_path: Path) -> None:
    page, markdown = written(write_detection_run(tmp_path / "with", with_nms=NMS))
    assert "04_quantize/model_nms.onnx 83.21 79.1 KiB 0.770 0.880 0.550" in page
    assert "| 04_quantize/model_nms.onnx | 83.21 | 79.1 KiB | 0.770 | 0.880 | 0.550 |" in markdown
    assert all("uppression" not in text for text in written(write_detection_run(tmp_path / "without")))


def test_a_teacher_alone_is_compared_to_nothing(tmp_path: Path) -> None:
    run = load_run(write_detection_run(tmp_path, stages=("teacher",)))
    found = box_figures(run)
    assert found is not None
    assert found.sizes == []
    assert found.found_takeaway.endswith("Of 12 objects, the teacher's file finds 11 and has 0 false detections.")
    assert box_gallery(run) is None
    page = plain(run_page(run))
    assert "The teacher's file has 91.50 % mAP50" in page
    assert "lost and gained" not in page


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package: chromium)")
def test_the_page_is_whole_in_a_browser(tmp_path: Path) -> None:
    """Nothing fails, a phone scrolls one way only, and the image of the first panel is in the others too."""
    long = "a_class_with_a_name_that_no_line_of_a_phone_can_hold_and_that_has_no_space"
    page = write_report(write_detection_run(tmp_path, classes=(long, "dog", "cow"), with_nms=NMS))
    with browser() as tab:
        for width in (390, 1280):
            tab.open(page, width)
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("document.querySelectorAll('.boxes').length") == 9
            assert tab.value("[...document.querySelectorAll('.boxes use')].every(use => use.getBBox().width == 320)")
            assert tab.complaints() == []
            assert tab.requests() == []
