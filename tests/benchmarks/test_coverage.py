"""The coverage benchmark's rows, its table and its summary; what it takes through the stages is run by hand."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch

from compress.utils.files import write_json
from tests.benchmarks.coverage import row_of, summary, table
from tests.benchmarks.coverage_networks import CLASSES, all_names, build
from tests.zoo.conftest import needs

TIMM = needs("mobilenet_v1")
THROUGH = {
    "name": "timm/one", "status": "through", "seconds": 3.2, "pixels": 64, "macs": 4_000_000, "macs_left": 1_000_000,
    "layers": 10, "int8_layers": 9, "agreement_percent": 97.0, "noise_percent": 3.0, "stage": None,
}  # fmt: skip
FAULT = {"name": "timm/two", "status": "fault", "seconds": 1.0, "stage": "export", "problem": "KeyError: a|b"}
SLOW = {"name": "timm/three", "status": "too slow", "seconds": 600.0, "problem": "ran past 600 s"}


def test_the_summary_counts_what_is_through_and_what_is_not() -> None:
    told = summary([THROUGH, FAULT, SLOW])
    assert told.startswith("1 of 3 networks are through (33 %), 0 refused, 1 faults, 1 too slow; 9 of 10 layers")


def test_each_row_of_the_table_has_all_cells_and_the_problem_with_its_stage() -> None:
    lines = table([THROUGH, FAULT, SLOW]).splitlines()
    assert {line.count("|") for line in lines} == {10}
    assert "| 25 % | 9 of 10 | 97 % | 3.0 % |" in lines[2]
    assert "fault in export: KeyError: a/b" in lines[3]


def test_a_row_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    write_json(tmp_path / "timm_two.json", FAULT)
    options = argparse.Namespace(folder=tmp_path, again=False, seconds=1)
    assert row_of("timm/two", options) == FAULT


def test_a_process_that_ends_without_a_row_is_a_fault_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    row = row_of("timm/two", argparse.Namespace(folder=tmp_path, again=True, seconds=60))
    assert row["status"] == "fault"
    assert "ended with 1" in row["problem"]


@pytest.mark.parametrize(
    "name", ["torchvision/squeezenet1_1", pytest.param("timm/test_vit", marks=needs("mobilenet_v1"))]
)
def test_a_network_comes_with_the_smallest_images_that_it_takes(name: str) -> None:
    network, pixels = build(name)
    assert pixels in (64, 96, 128)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, pixels, pixels)).shape == (1, CLASSES)


@pytest.mark.parametrize("library", ["torchvision", pytest.param("timm", marks=TIMM)])
def test_all_networks_are_listed(library: str) -> None:
    names = [name for name in all_names() if name.startswith(f"{library}/")]
    assert len(names) == len(set(names)) >= 80
