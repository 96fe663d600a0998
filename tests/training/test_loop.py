"""The training loop: it learns, it repeats itself, it keeps the best epoch, it stops at a loss that is no number."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.config.schema import Config, TrainConfig
from compress.data import load_data
from compress.data.dataset import Batch, Data
from compress.models.cifar_resnet import CifarResNet
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.state import TrainState
from compress.training.tensorboard import TensorBoardWriter
from compress.training.validation import Validation
from compress.utils.errors import EarlyStopped, UserError


def cross_entropy(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    logits = network(examples.images)
    return F.cross_entropy(logits, examples.labels), logits


@pytest.fixture
def data(tiny_config: Config) -> Data:
    return load_data(tiny_config.data, 0)


def fresh() -> nn.Module:
    """With the first weights that the golden figures were taken from."""
    torch.manual_seed(0)
    return CifarResNet(8, 1, 3)


def run(
    network: nn.Module, data: Data, folder: Path, loss=cross_entropy, epochs: int = 3, min_val_metric=(), **config
) -> list[dict]:
    with TensorBoardWriter(folder) as curves:
        context = Context(
            data, None, TrainConfig(**config), torch.device("cpu"), 1, curves, min_val_metric=list(min_val_metric)
        )
        return train(network, loss, context, TrainSettings("test", epochs, 0.05))


def test_it_learns(data: Data, tmp_path: Path) -> None:
    rows = run(fresh(), data, tmp_path)
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["val_top1_percent"] > 90


def test_golden_figures(data: Data, tmp_path: Path) -> None:
    """Written down before several processes could share a batch, and a batch be taken in parts."""
    rows = run(fresh(), data, tmp_path)
    assert [row["train_loss"] for row in rows] == pytest.approx([0.765456, 0.088749, 0.042790], rel=1e-3)
    assert [row["val_loss"] for row in rows] == pytest.approx([0.482613, 0.213905, 0.106690], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_weights(data: Data, tmp_path: Path, optimizer: str) -> None:
    first, second = fresh(), fresh()
    run(first, data, tmp_path, epochs=1, optimizer=optimizer)
    run(second, data, tmp_path, epochs=1, optimizer=optimizer)
    start = fresh().state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert any(not torch.equal(value, start[name]) for name, value in first.state_dict().items())


def test_no_epoch_changes_nothing(data: Data, tmp_path: Path) -> None:
    network = fresh()
    before = copy.deepcopy(network.state_dict())
    assert run(network, data, tmp_path, epochs=0) == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_earlier_epoch_that_is_better_beyond_chance_is_kept(data: Data, tmp_path: Path) -> None:
    """Labels that turn wrong after two epochs: the last is far from the best."""
    network, calls = fresh(), []

    def spoiled(network, examples):
        calls.append(1)
        wrong = len(calls) > 2 * data.train.steps()
        return cross_entropy(network, examples._replace(labels=(examples.labels + wrong) % 3))

    rows = run(network, data, tmp_path, spoiled, epochs=10)
    best = max(row["val_top1_percent"] for row in rows)
    assert rows[-1]["val_top1_percent"] < best
    with torch.no_grad():
        right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in data.val.batches())
    assert 100 * right / len(data.val) == best


def test_the_last_epoch_is_kept_where_an_earlier_one_is_better_by_chance(data: Data, tmp_path: Path) -> None:
    """A last epoch that spoils one image of 24: 1 standard error, which chance explains."""
    network = fresh()
    training = TrainState("test", 2, 1, network, None, None, None)
    first = torch.zeros(24)
    for epoch, mistakes in enumerate((first, first.index_fill(0, torch.tensor(0), 1.0))):
        with torch.no_grad():
            network.linear.bias.fill_(epoch)
        training.finish_epoch({}, Validation(mistakes, mistakes, None, 0.0))
    kept = training.choose_epoch()
    assert kept["epoch"] == 2
    assert "1.0 standard errors better" in kept["reason"]
    assert network.linear.bias.eq(1).all()


@pytest.mark.parametrize(("earlier", "kept"), [(0.9, 1), (1.1, 2)])
def test_a_student_is_judged_by_its_distance_and_not_by_few_mistakes(earlier: float, kept: int) -> None:
    """An epoch with fewer mistakes is kept only where it is nearer to the teacher."""
    network = fresh()
    training = TrainState("test", 2, 1, network, None, None, None)
    distances = 1 + 0.01 * torch.arange(24)
    none, all_ = torch.zeros(24), torch.ones(24)
    training.finish_epoch({}, Validation(none, none, distances * earlier, 0.0))
    training.finish_epoch({}, Validation(all_, all_, distances, 0.0))
    assert training.choose_epoch()["epoch"] == kept


def test_it_ends_below_its_floor_and_not_above(data: Data, tmp_path: Path) -> None:
    rows = run(fresh(), data, tmp_path)
    tops = [row["val_top1_percent"] for row in rows]
    kept = [max(tops[: epoch + 1]) for epoch in range(len(tops))]
    assert run(fresh(), data, tmp_path, min_val_metric=kept) == rows
    with pytest.raises(EarlyStopped, match=rf"the best of 2 epochs of test; expected {kept[1] + 0.1:.2f} % by then"):
        run(fresh(), data, tmp_path, min_val_metric=[kept[0], kept[1] + 0.1])


def test_a_loss_that_is_no_number_names_the_step(data: Data, tmp_path: Path) -> None:
    calls = []

    def broken(network, examples):
        calls.append(1)
        value, logits = cross_entropy(network, examples)
        return value * (float("nan") if len(calls) == 3 else 1), logits

    # The first of 9 steps is the end of the rise to 0.05, the others fall along a cosine.
    message = r"a loss of nan at step 3 of 9 \(epoch 1\) of test, where the learning rate is 0.0481; .* lower test\.lr"
    with pytest.raises(UserError, match=message):
        run(fresh(), data, tmp_path, broken)
