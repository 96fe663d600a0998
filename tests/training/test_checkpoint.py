"""What a stage chose is chosen once, for as long as its training is under way."""

from pathlib import Path

import pytest
import torch

from compress.training.checkpoint import Checkpoint
from compress.utils.files import remove_training, training_file


def unexpected() -> None:
    raise AssertionError("it was to be read, not computed again")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return training_file(tmp_path / "02_prune")


def test_a_choice_is_computed_once(path: Path) -> None:
    checkpoint = Checkpoint(path, "key", 10)
    assert checkpoint.decide("step 1", lambda: {"gone": [[0, 3], []]}) == {"gone": [[0, 3], []]}
    assert checkpoint.decide("step 1", unexpected) == {"gone": [[0, 3], []]}


def test_a_choice_survives_a_restart_with_all_that_came_before(path: Path) -> None:
    Checkpoint(path, "key", 10).decide("step 1", lambda: [1.5, None, "a"])
    Checkpoint(path, "key", 10).decide("step 2", lambda: None)
    again = Checkpoint(path, "key", 10)
    assert again.decide("step 1", unexpected) == [1.5, None, "a"]
    assert again.decide("step 2", unexpected) is None


def test_choices_of_another_key_are_forgotten(path: Path) -> None:
    Checkpoint(path, "key", 10).decide("step 1", lambda: 1)
    Checkpoint(path, "key", 10).decide("step 2", lambda: 1)
    other = Checkpoint(path, "another key", 10)
    assert other.decide("step 1", lambda: 2) == 2
    assert other.decide("step 2", lambda: 3) == 3
    assert Checkpoint(path, "another key", 10).decide("step 1", unexpected) == 2


def test_a_choice_that_fails_is_made_again(path: Path) -> None:
    checkpoint = Checkpoint(path, "key", 10)
    with pytest.raises(AssertionError, match="computed again"):
        checkpoint.decide("step 1", unexpected)
    assert checkpoint.decide("step 1", lambda: 4) == 4


def test_choices_and_weights_are_removed_together(path: Path) -> None:
    checkpoint = Checkpoint(path, "key", 10)
    checkpoint.decide("step 1", lambda: 1)
    checkpoint.save({"weight": torch.ones(2)}, {})
    assert checkpoint.decide("step 1", unexpected) == 1  # saved weights leave it alone
    assert len(list(path.parent.iterdir())) == 2
    remove_training(path.parent / "02_prune")
    assert list(path.parent.iterdir()) == []
    assert checkpoint.decide("step 1", lambda: 2) == 2
