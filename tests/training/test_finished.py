"""A stage with several trainings: one that is stopped anywhere ends with the bits of one that was not."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from compress.config.schema import Config, TrainConfig
from compress.data import load_data
from compress.data.dataset import Batch, Data
from compress.methods.distillation.losses import label_loss
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.sparsity import sparsity_penalty
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import EarlyStopped, UserError
from tests.pipeline.small_training import CPU, Killed, assert_equal, dying, small_network

EPOCHS = 2
STEPS = 3  # an epoch
SAVINGS = EPOCHS * (STEPS + 2)  # of each training: after every step, one validation batch, and the end of an epoch
Rows = list[dict[str, float]]


@pytest.fixture
def data(tiny_config: Config) -> Data:
    tiny_config.data.flip = True
    return load_data(tiny_config.data, 0)


def no_hook(part: str) -> None:
    """Nothing happens between two trainings but pruning."""


@dataclass
class Stage:
    """Learns sparsity, prunes, fine-tunes, prunes again and fine-tunes; `steps` has what each training took."""

    data: Data
    folder: Path
    before_pruning: Callable[[str], None] = no_hook
    broken_step: int = 0  # its loss is no number
    min_val_metric: list[float] = field(default_factory=list)
    ema: float = 0.0
    steps: dict[str, list[list[int]]] = field(default_factory=dict)  # part -> the images of each step

    def run(self, checkpoint: Checkpoint | None, seed: int = 0) -> tuple[nn.Module, list[Rows], Context]:
        """Returns the network, the rows of each training, and the context; `seed` is that of all random numbers."""
        network = small_network(seed)
        random.seed(seed)
        np.random.seed(seed)
        with TensorBoardWriter(self.folder) as curves:
            context = Context(self.data, None, TrainConfig(ema=self.ema), CPU, 5, curves, checkpoint)
            context.min_val_metric = self.min_val_metric
            penalty = sparsity_penalty(self._prunable(network), "growing_reg", 0.01)
            settings = TrainSettings("test", EPOCHS, 0.05, penalty=penalty, part="sparsity", last=False)
            history = [train(network, self._loss("sparsity"), context, settings)]
            for part, left, last in (("first", 4, False), ("second", 3, True)):
                self.before_pruning(part)
                self._prune(network, left)
                settings = TrainSettings("test", EPOCHS, 0.05, part=part, last=last)
                history.append(train(network, self._loss(part), context, settings))
        return network, history, context

    def _prunable(self, network: nn.Module) -> PrunableNetwork:
        return PrunableNetwork(network, torch.zeros(1, *self.data.shape))

    def _prune(self, network: nn.Module, left: int) -> None:
        """Keeps some filters of the first layer, by their norms, with draws that decide among all that are near."""
        prunable = self._prunable(network)
        scores = [torch.zeros(group.channels) for group in prunable.groups]
        (at,) = [at for at, group in enumerate(prunable.groups) if group.layers == ["0"]]
        scores[at] = network[0].weight.detach().flatten(1).norm(dim=1) + 0.1 * torch.rand(len(scores[at]))
        lefts = [left if each == at else group.channels for each, group in enumerate(prunable.groups)]
        prunable.remove(prunable.lowest(lefts, scores))

    def _loss(self, part: str) -> Callable:
        taken = self.steps.setdefault(part, [])

        def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            taken.append(examples.positions.tolist())
            value, logits = label_loss(0.0)(network, examples)
            return value * (float("nan") if part == "first" and len(taken) == self.broken_step else 1), logits

        return loss


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_wherever_a_stage_with_several_trainings_is_killed_it_ends_the_same(
    data: Data, tmp_path: Path, ema: float
) -> None:
    """In each training, at its end, and before the next one; what goes on starts from other weights and draws."""
    wanted, history, context = Stage(data, tmp_path / "whole", ema=ema).run(None)
    assert context.notes["kept_epoch"]["training"] == "second"
    drawn = torch.rand(())
    for savings in range(1, 3 * SAVINGS + 1):
        path = tmp_path / f"{savings}.safetensors"
        with pytest.raises(Killed):
            Stage(data, tmp_path / "killed", ema=ema).run(dying(path, savings))
        found, rows, resumed = Stage(data, tmp_path / "killed", ema=ema).run(Checkpoint(path, "key", 10), seed=9)
        assert_equal(found, wanted)
        assert rows == history
        assert resumed.notes == context.notes
        assert torch.equal(torch.rand(()), drawn)
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")


def test_a_stage_killed_in_every_training_ends_the_same(data: Data, tmp_path: Path) -> None:
    """The file of each life holds what the lives before it finished."""
    wanted, history, _ = Stage(data, tmp_path / "whole").run(None)
    for life, savings in enumerate((3, SAVINGS, SAVINGS)):
        with pytest.raises(Killed):
            Stage(data, tmp_path / "killed").run(dying(tmp_path / "state", savings), seed=life)
    found, rows, _ = Stage(data, tmp_path / "killed").run(Checkpoint(tmp_path / "state", "key", 10), seed=9)
    assert_equal(found, wanted)
    assert rows == history


@pytest.mark.parametrize("before", ["first", "second"])
def test_a_training_that_is_finished_takes_no_step_again(data: Data, tmp_path: Path, before: str) -> None:
    """It is saved at its end, however long ago the last save is: what comes next may take long."""

    def killed(part: str) -> None:
        if part == before:
            raise Killed

    wanted, _, _ = Stage(data, tmp_path / "curves").run(None)
    with pytest.raises(Killed):
        Stage(data, tmp_path / "curves", killed).run(Checkpoint(tmp_path / "state", "key", 10))
    stage = Stage(data, tmp_path / "curves")
    found, _, _ = stage.run(Checkpoint(tmp_path / "state", "key", 10), seed=9)
    left = {"first": ["first", "second"], "second": ["second"]}[before]
    assert [part for part, taken in stage.steps.items() if taken] == left
    assert_equal(found, wanted)


def test_the_curves_of_a_stage_go_on_from_one_training_to_the_next(data: Data, tmp_path: Path) -> None:
    _, history, _ = Stage(data, tmp_path).run(None)
    found = curves(tmp_path)
    assert [step for step, _ in found["step/loss"]] == list(range(3 * EPOCHS * STEPS))
    rows = [row["val_loss"] for part in history for row in part]
    assert found["epoch/val_loss"] == [(epoch, pytest.approx(value)) for epoch, value in enumerate(rows, 1)]


def test_each_training_draws_orders_of_its_own(data: Data, tmp_path: Path) -> None:
    stage = Stage(data, tmp_path)
    stage.run(None)
    orders = [str(taken[at : at + STEPS]) for taken in stage.steps.values() for at in range(0, len(taken), STEPS)]
    assert len(set(orders)) == len(orders) == 3 * EPOCHS


def test_the_floors_of_a_stage_count_the_epochs_of_all_its_trainings(data: Data, tmp_path: Path) -> None:
    _, history, _ = Stage(data, tmp_path).run(None)
    tops = [row["val_top1_percent"] for part in history for row in part]
    floors = [max(tops[: epoch + 1]) for epoch in range(3)]
    assert Stage(data, tmp_path, min_val_metric=floors).run(None)[1] == history
    stage = Stage(data, tmp_path, min_val_metric=[*floors[:2], floors[2] + 0.1])
    with pytest.raises(EarlyStopped, match=r"the best of 3 epochs of test; .* lower stop_below\.test,"):
        stage.run(None)
    assert [len(taken) for taken in stage.steps.values()] == [EPOCHS * STEPS, STEPS]


def test_a_loss_that_is_no_number_names_the_training_and_the_setting(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at step 2 of 6 \(epoch 1\) of test \(first\), .* to mend it: lower test\.lr"):
        Stage(data, tmp_path, broken_step=2).run(None)


def test_a_penalty_weakens_what_it_pulls(data: Data, tmp_path: Path) -> None:
    norms = {}
    for weight in (0.0, 0.5):
        network = small_network(0)
        prunable = PrunableNetwork(network, torch.zeros(1, *data.shape))
        with TensorBoardWriter(None) as nowhere:
            context = Context(data, None, TrainConfig(), CPU, 5, nowhere)
            penalty = sparsity_penalty(prunable, "group_norm", weight)
            train(network, label_loss(0.0), context, TrainSettings("test", EPOCHS, 0.05, penalty=penalty))
        norms[weight] = network[0].weight.detach().norm().item()
    assert norms[0.5] < 0.8 * norms[0.0]
