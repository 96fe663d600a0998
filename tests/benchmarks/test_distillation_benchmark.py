"""The arithmetic of the distillation benchmark: which students it trains, with which settings, and what it prints."""

import pytest
import torch

from tests.benchmarks import distillation
from tests.benchmarks.distillation import Job, config_of, jobs, parse
from tests.benchmarks.distillation_tables import tables
from tests.benchmarks.rows import Row, figures, key_of

IMAGES = 200


@pytest.fixture(autouse=True)
def _one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "commit", lambda: "0123456789")


def row(way: str, seed: int, wrong: int) -> Row:
    """A finished row of a student with so many mistakes, whose teacher has 10."""
    right, teacher = torch.ones(2, IMAGES, dtype=torch.bool)
    right[:wrong], teacher[100:110] = False, False
    job = {"pair": "a-b", "way": way, "seed": seed, "epochs": 3, "lr": 0.1, "commit": "0123456789"}
    machine = {"date": "today", "cpu": "a CPU", "cores": 2, "threads": 1, "jobs": 1}
    return job | machine | figures(right, teacher)


def test_all_losses_of_a_seed_come_before_the_next_seed() -> None:
    found = jobs(parse(["--pairs", "resnet56-resnet20", "--seeds", "3", "4"]))
    assert [job.seed for job in found] == sorted(job.seed for job in found)
    assert len({key_of(job) for job in found}) == len(found) == 2 * 10
    assert {"labels", "kd", "kd_standardized", "dkd", "dist", "mlkd", "kd+at", "kd+review"} < {job.way for job in found}


@pytest.mark.parametrize(
    ("way", "alpha", "losses", "temperature"),
    [
        ("labels", 0.0, ["kd"], 1.0),
        ("kd_standardized", 0.9, ["kd_standardized"], 2.0),
        ("dkd", 0.5, ["dkd"], 4.0),
        ("kd+review", 0.9, ["kd", "review"], 4.0),
    ],
)
def test_a_job_becomes_the_recipe_with_its_losses(
    way: str, alpha: float, losses: list[str], temperature: float
) -> None:
    options = parse(["--datasets", "DATA", "--threads", "1"])
    config = config_of(Job("resnet56-resnet20", way, 7, 5, 0.05, "0123456789"), options)
    distill = config.distill
    assert (distill.alpha, distill.losses, distill.temperature, distill.hint_layers) == (alpha, losses, temperature, [])
    assert (distill.student, distill.epochs, distill.lr) == ("resnet20", 5, 0.05)
    assert (config.stages, config.seed, config.data.root) == (
        ["teacher", "distill"], 7, "DATA/cifar10/cifar10_lossless_subset.npz"
    )  # fmt: skip


def test_the_table_compares_each_loss_with_the_labels_and_with_kd_on_the_same_seeds() -> None:
    rows = [row("labels", 0, 40), row("kd", 0, 30), row("dkd", 0, 20), row("labels", 1, 40), row("kd", 1, 32)]
    lines = tables(rows).splitlines()
    assert lines[0] == "a-b, 3 epochs, learning rate 0.1; the teacher has 95.00 (95.00, 95.00) %"
    assert lines[4].startswith("| dkd | 90.00 (90.00) | +10.00 (")
    assert lines[4].split("|")[4].startswith(" +5.00 (")
    assert lines[5].startswith("| kd | 84.50 (85.00, 84.00) | +4.50 (")
    assert lines[6].startswith("| labels | 80.00 (80.00, 80.00) |  | -4.50 (")
