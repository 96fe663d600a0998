"""The page's part about each class and about confidence, and runs that have no such figures."""

from pathlib import Path
from typing import Any

from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import load_run
from compress.report.screening import screening
from tests.report.tiny_run import write_tiny_run

FIGURES: dict[str, Any] = {
    "deployed_calibration_error_percent": 7.25,
    "deployed_calibration_error_at_temperature_percent": 1.5,
    "temperature": 2.0,
    "deployed_balanced_accuracy_percent": 81.25,
    "deployed_balanced_accuracy_ci95_percent": [70.0, 90.0],
    "deployed_auroc_percent": 97.5,
    "deployed_recall_by_class_percent": [90.0, 72.5, None],
    "deployed_precision_by_class_percent": [80.0, 60.0, None],
    "deployed_f1_by_class_percent": [84.7, 65.6, None],
}
POINTS = [
    {"threshold": 0.4, "sensitivity_percent": 91.0, "specificity_percent": 94.5},
    {"threshold": 0.5, "sensitivity_percent": 62.0, "specificity_percent": 96.0},
    {"threshold": None, "sensitivity_percent": None, "specificity_percent": None},
]


def test_each_class_has_a_row_and_confidence_a_sentence(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path, **FIGURES))
    found = screening(run)
    assert [(row.name, row.recall, row.f1) for row in found.rows] == [
        ("cat", "90.0", "84.7"), ("dog", "72.5", "65.6"), ("cow", "–", "–")
    ]  # fmt: skip
    assert found.points == []
    for text in (run_page(run), run_markdown(run)):
        assert "81.25" in text
        assert "Class dog is found least, with a recall of 72.5" in text
        assert "differ by 7.2 points on average, and by 1.5 at the temperature 2.00" in text
        assert "Sensitivity where" not in text


def test_sensitivities_stand_with_the_specificity_that_was_asked_for(tmp_path: Path) -> None:
    folder = write_tiny_run(tmp_path, settings={"measure.specificity": 0.95}, **FIGURES, operating_points=POINTS)
    run = load_run(folder)
    assert [(row.sensitivity, row.specificity) for row in screening(run).points] == [
        ("91.0", "94.5"), ("62.0", "96.0"), ("–", "–")
    ]  # fmt: skip
    for text in (run_page(run), run_markdown(run)):
        assert "Sensitivity where 95 % specificity was asked for" in text


def test_of_two_classes_the_second_alone_has_a_sensitivity(tmp_path: Path) -> None:
    by_class = {name: value[:2] for name, value in FIGURES.items() if name.endswith("by_class_percent")}
    folder = write_tiny_run(
        tmp_path, classes=("no", "yes"), settings={"measure.specificity": 0.9}, **FIGURES | by_class,
        operating_points=POINTS[:1],
    )  # fmt: skip
    assert [row.name for row in screening(load_run(folder)).points] == ["yes"]


def test_where_no_temperature_fits_the_page_says_why(tmp_path: Path) -> None:
    none = {"temperature": None, "deployed_calibration_error_at_temperature_percent": None}
    run = load_run(write_tiny_run(tmp_path, **FIGURES | none))
    assert "all validation images are right" in screening(run).confidence


def test_a_run_of_an_earlier_version_has_no_such_part(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path))
    assert screening(run) is None
    assert 'id="confidence"' not in run_page(run)


def test_without_labels_of_validation_images_the_classes_still_have_rows(tmp_path: Path) -> None:
    none = dict.fromkeys(("temperature", "deployed_calibration_error_percent"))
    cause = {"temperature": "the validation images have no labels of their own"}
    found = screening(load_run(write_tiny_run(tmp_path, **FIGURES | none | {"unavailable": cause})))
    assert len(found.rows) == 3
    assert found.confidence == f"Confidence is not compared with accuracy: {cause['temperature']}."
