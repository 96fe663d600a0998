"""The sentence at the top: it states what was won and lost, and never a difference that chance may have made."""

from pathlib import Path

import pytest

from compress.report.run_files import load_run
from compress.report.verdict import basis, int8_warnings, times_text, verdict
from tests.report.tiny_run import write_tiny_run


def sentence(folder: Path, delta: tuple[float, float, float], **figures: float) -> str:
    return verdict(load_run(write_tiny_run(folder, delta=delta, extras=False, **figures)))


def test_a_loss_is_told_with_its_interval(tmp_path: Path) -> None:
    assert sentence(tmp_path, (-3.0, -5.0, -1.0)) == (
        "4.0 times smaller, 4.0 times faster, 3.00 points of top-1 accuracy lost (95 % interval 1.00 to 5.00)."
    )


def test_a_gain_is_told_with_its_interval(tmp_path: Path) -> None:
    assert sentence(tmp_path, (2.0, 0.5, 3.5)).endswith(
        "2.00 points of top-1 accuracy gained (95 % interval 0.50 to 3.50)."
    )


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ((-2.5, -6.0, 1.0), "2.50 points of top-1 accuracy lost (95 % interval −1.00 to 6.00)"),
        ((0.5, -1.0, 2.0), "0.50 points of top-1 accuracy gained (95 % interval −1.00 to 2.00)"),
        ((0.0, -1.0, 1.0), "0.00 points of top-1 accuracy lost (95 % interval −1.00 to 1.00)"),
        ((-1.0, -2.0, 0.0), "1.00 points of top-1 accuracy lost (95 % interval 0.00 to 2.00)"),
    ],
)
def test_an_interval_that_spans_0_tells_no_difference(tmp_path: Path, delta: tuple, text: str) -> None:
    assert sentence(tmp_path, delta).endswith(f"{text}: on 40 test images no difference can be told.")


def test_a_file_that_is_larger_and_slower_is_said_to_be(tmp_path: Path) -> None:
    found = sentence(tmp_path, (0.0, -1.0, 1.0), size_bytes=160_000, speedup_vs_teacher=0.5)
    assert found.startswith("2.0 times larger, 2.0 times slower, ")


def test_a_ratio_near_1_is_no_difference() -> None:
    assert times_text(1.02, "faster", "slower", "as fast") == "as fast as the teacher (1.02 times)"


def test_a_teacher_alone_claims_nothing(tmp_path: Path) -> None:
    found = verdict(load_run(write_tiny_run(tmp_path, stages=("teacher",))))
    assert found == (
        "The teacher's file has 95.00 % top-1 accuracy (95 % interval 85.00 to 98.00); nothing has been compressed yet."
    )


def test_the_basis_names_cpu_threads_and_images(tmp_path: Path) -> None:
    found = basis(load_run(write_tiny_run(tmp_path)))
    for part in ("04_quantize's against 01_teacher's", "ONNX Runtime 1.23", "A CPU, 1 thread;", "40 test images"):
        assert part in found


def test_what_runs_in_float_and_what_int8_lost_is_said(tmp_path: Path) -> None:
    run = load_run(write_tiny_run(tmp_path, extras=False))
    run.last.record["notes"]["float_layers"] = "1 layer runs in float, not int8"
    run.last.record["notes"]["int8_loss"] = "int8 lost 9.00 points. Try quantize.equalize=true"
    assert verdict(run).endswith(
        ". 1 layer runs in float, not int8. Int8 lost 9.00 points. Try quantize.equalize=true."
    )
    assert int8_warnings({}) == []
