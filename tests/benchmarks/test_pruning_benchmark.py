"""The arithmetic of the pruning benchmark: which networks it makes, how it cuts them by hand, and what it prints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.models.cifar_resnet import CifarResNet
from tests.benchmarks import pruning
from tests.benchmarks.pruning import Job, config_of, images_of, jobs, parse
from tests.benchmarks.pruning_by_hand import PRUNERS, CannotPruneError, prune_by_hand
from tests.benchmarks.pruning_tables import difference, tables
from tests.benchmarks.rows import figures, key_of

IMAGES = 200


@pytest.fixture(autouse=True)
def _one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "commit", lambda: "0123456789")


def right(wrong: int, first: int = 0) -> torch.Tensor:
    """Of which images a network has all right but `wrong` of them, from `first` on."""
    found = torch.ones(IMAGES, dtype=torch.bool)
    found[first : first + wrong] = False
    return found


def row(way: str, seed: int, wrong: int, part: str = "refit", share: float = 0.25) -> dict:
    """A finished row of a network with so many mistakes, whose teacher has 10."""
    job = {"part": part, "way": way, "share": share, "seed": seed, "epochs": 0 if part == "refit" else 10}
    job |= {"lr": 0.03, "batch_size": 32} if job["epochs"] else {"lr": 0.0, "batch_size": 0}
    machine = {"date": "today", "cpu": "a CPU", "cores": 2, "threads": 1, "jobs": 1}
    found = figures(right(wrong), right(10, first=100)) | {"macs_share": 0.248}
    return job | {"train_images": 0, "commit": "0123456789", "seconds": 3.0} | machine | found


def network() -> CifarResNet:
    torch.manual_seed(0)
    made = CifarResNet(8, 3, 10).eval()
    for name, parameter in made.named_parameters():
        if "bn" in name:
            torch.nn.init.uniform_(parameter, 0.1, 1.0)
    return made


def test_refit_takes_every_importance_and_every_scope_of_l1_once() -> None:
    found = jobs(parse(["--refit", "--best", "taylor", "--shares", "0.5", "--seeds", "0"]))
    ways = [job.way for job in found]
    assert len(set(ways)) == len(ways)
    assert ways[0] == "l1:local"
    assert {"hessian:local", "l1:global", "l1:isomorphic", "l1:sensitivity", "taylor:sensitivity"} <= set(ways)
    assert {f"{name}:{layers}" for name in PRUNERS for layers in ("inner", "all")} <= set(ways)
    assert len(ways) == 10 + 3 + 1 + 2 * len(PRUNERS)


def test_training_takes_the_named_ways_with_every_share_and_seed() -> None:
    words = ["--train", "5", "--ways", "l1:local", "l2:global", "--pruners", "BNScalePruner", "--shares", "0.5", "0.3"]
    found = jobs(parse([*words, "--seeds", "3", "4"]))
    assert {job.way for job in found} == {"l1:local", "l2:global", "BNScalePruner:inner"}
    assert {(job.share, job.seed) for job in found} == {(0.5, 3), (0.5, 4), (0.3, 3), (0.3, 4)}
    assert len({key_of(job) for job in found}) == len(found) == 12
    assert {job.epochs for job in found} == {5}


@pytest.mark.parametrize(
    ("words", "problem"), [(["--train", "1"], "without --ways"), (["--refit", "--ways", "l3:local"], "l3:local")]
)
def test_ways_that_are_unknown_or_missing_are_refused(
    words: list[str], problem: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        parse(words)
    assert problem in capsys.readouterr().err


def test_a_job_becomes_the_recipe_with_its_settings() -> None:
    options = parse(["--datasets", "DATA", "--threads", "1"])
    config = config_of(Job("train", "taylor:sensitivity", 0.3, 7, 5, 0.03, 32, 0, "0123456789"), options)
    assert (config.prune.importance, config.prune.scope) == ("taylor", "sensitivity")
    assert config.prune.target.asked() == {"macs_share": 0.3}
    assert (config.seed, config.distill.epochs, config.distill.lr, config.threads) == (7, 5, 0.03, 1)
    assert config.data.batch_size == 32
    assert config.data.root == "DATA/cifar10/cifar10_lossless_subset.npz"


def test_fewer_train_images_are_a_seeded_choice_beside_all_test_images(tmp_path: Path) -> None:
    source = tmp_path / "cifar10" / "cifar10_lossless_subset.npz"
    source.parent.mkdir()
    labels = np.arange(20)
    np.savez(source, train_images=labels, train_labels=labels, test_images=labels, test_labels=labels)
    options = parse(["--datasets", str(tmp_path), "--out", str(tmp_path / "found.json"), "--train-images", "6"])
    with np.load(images_of(options)) as chosen:
        assert sorted(chosen["train_labels"]) != [0, 1, 2, 3, 4, 5]
        assert len(set(chosen["train_labels"])) == 6
        np.testing.assert_array_equal(chosen["train_images"], chosen["train_labels"])
        np.testing.assert_array_equal(chosen["test_labels"], labels)


@pytest.mark.parametrize("name", PRUNERS)
def test_torch_pruning_cuts_the_first_convolutions_of_blocks_until_the_share_is_met(name: str) -> None:
    whole, example = network(), torch.zeros(1, 3, 32, 32)
    pruned = prune_by_hand(whole, name, True, 0.6, example)
    share = pruning.count_cost(pruned, (3, 32, 32))[1] / pruning.count_cost(whole, (3, 32, 32))[1]
    assert 0.5 < share <= 0.6
    assert pruned.layer3[0].conv2.out_channels == 64
    assert whole.layer3[0].conv1.out_channels == 64
    assert pruned(example).shape == (1, 10)


def test_torch_pruning_fails_on_padded_shortcuts_and_on_a_share_that_it_cannot_reach() -> None:
    example = torch.zeros(1, 3, 32, 32)
    with pytest.raises(CannotPruneError, match="IndexError"):
        prune_by_hand(network(), "MagnitudePruner-local", False, 0.5, example)
    with pytest.raises(CannotPruneError, match="MACs are left, more than"):
        prune_by_hand(network(), "MagnitudePruner-local", True, 0.001, example)


def test_seeds_are_counted_together_in_a_difference() -> None:
    """Six images lost on each of two seeds: 3 points, less certain on one seed alone."""
    pair = (right(6).numpy(), right(0).numpy())
    assert difference([pair, pair]).startswith("-3.00 (-4.7")
    assert difference([pair]).startswith("-3.00 (-5.5")
    assert difference([]) == "not known"


def test_a_table_has_a_line_for_each_way_with_means_and_differences_to_the_baseline() -> None:
    rows = [row("l1:local", 0, 20), row("l1:local", 1, 30), row("l1:global", 0, 10), row("l1:global", 1, 20)]
    lines = tables([*rows, row("l2:local", 0, 40) | {"error": "no\nway | out"}]).splitlines()
    assert "the teacher has 95.00 (95.00, 95.00) %" in lines[0]
    assert lines[4].startswith("| 4.00x fewer | l1:global | 92.50 (95.00, 90.00) | +5.00 (")
    assert lines[4].endswith("| 24.8 | 3 |")
    assert lines[5] == "| 4.00x fewer | l1:local | 87.50 (90.00, 85.00) |  | 24.8 | 3 |"
    assert lines[6] == "| 4.00x fewer | l2:local | failed on seeds 0: no way / out | | | |"
    assert len({line.count("|") for line in lines[2:7]}) == 1
    assert lines[-1] == "Commit 0123456789, today, 2 cores of a CPU, threads: 1, jobs at once: 1."


def test_trained_ways_are_compared_with_the_teacher_in_a_table_of_their_own() -> None:
    first, second = tables([row("l1:local", 0, 20), row("l1:local", 0, 10, part="train")]).split("\n\nAfter ")
    assert first.startswith("Right after the cut")
    assert second.startswith(
        "10 epochs of distillation with a learning rate of 0.03 and batches of 32: top-1 of the int8 file, against "
        "the teacher"
    )
    assert "| 95.00 (95.00) | +0.00 (" in second
