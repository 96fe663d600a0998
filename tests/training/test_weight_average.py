"""The average of the weights: it is the formula's, it is what is judged and kept, and it survives a kill."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.config.schema import Config, TrainConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.methods.distillation.losses import label_loss
from compress.methods.quantization.fake_quantize import RuntimeFakeQuantize
from compress.methods.quantization.pt2e import calibrate, convert, freeze_batch_norm, freeze_observers, prepare
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.tensorboard import TensorBoardWriter
from compress.training.validation import validate
from compress.training.weight_average import WeightAverage
from tests.pipeline.small_training import CPU, EPOCHS, SAVINGS, STEPS, Killed, assert_equal, dying, small_network
from tests.pipeline.small_training import small_training as trained

State = dict[str, np.ndarray]


@pytest.fixture
def data(tiny_config: Config) -> Data:
    tiny_config.data.flip = True
    return load_data(tiny_config.data, 0)


class Recorder(Checkpoint):
    """Keeps the network's state after each step instead of writing it."""

    def __init__(self, path: Path):
        super().__init__(path, "key", 0)
        self.steps: list[State] = []

    def save(self, tensors: dict[str, torch.Tensor], values: dict) -> None:
        after_step = values["batches"] and not tensors["average.is_applied"]  # neither validation nor an epoch's end
        if after_step:
            named = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("network.")}
            self.steps.append({name: value.detach().double().numpy().copy() for name, value in named.items()})


def averaged_by_hand(first: State, states: list[State], decay: float) -> State:
    average = {name: value.copy() for name, value in first.items()}
    for step, state in enumerate(states):
        share = min(decay, (1 + step) / (10 + step))
        for name in average:
            average[name] = share * average[name] + (1 - share) * state[name]
    return average


def arrays(network: nn.Module) -> State:
    return {name: value.detach().double().numpy().copy() for name, value in network.state_dict().items()}


def test_the_network_ends_with_the_average_of_the_formula(data: Data, tmp_path: Path) -> None:
    """Over the weights that were saved after each step; a decay that the warm-up reaches after the fifth step."""
    recorder = Recorder(tmp_path / "state")
    network, _ = trained(data, tmp_path, recorder, ema=0.4)
    assert len(recorder.steps) == EPOCHS * STEPS
    wanted = averaged_by_hand(arrays(small_network(0)), recorder.steps, 0.4)
    found, last = arrays(network), recorder.steps[-1]
    assert found.pop("1.num_batches_tracked") == EPOCHS * STEPS
    for name in found:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name
        if name != "0.bias":  # batch norm follows and leaves it no gradient
            assert not np.allclose(found[name], last[name], rtol=1e-5, atol=1e-6), name


def test_other_buffers_are_copied(data: Data) -> None:
    network = small_network(0)
    network.register_buffer("ends", torch.zeros(2))
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        network.ends.fill_(3.0)
        network[1].num_batches_tracked.fill_(7)
        network[1].running_mean.fill_(1.0)
    average.update(0)
    with average.applied():
        assert network.ends.eq(3).all()
        assert network[1].num_batches_tracked == 7
        assert network[1].running_mean == pytest.approx(0.9 * np.ones(6))  # 0.1 of the zeros before
    assert network[1].running_mean.eq(1).all()


def test_shared_and_frozen_weights_stay_shared_and_frozen() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    network = nn.Sequential(first, second, nn.Linear(3, 2).requires_grad_(False))
    before = copy.deepcopy(network.state_dict())
    average = WeightAverage(network, 0.5)
    with torch.no_grad():
        first.weight += 1
    average.update(5)
    average.copy_to_network()
    assert second.weight is first.weight
    assert torch.allclose(first.weight, before["0.weight"] + 0.6)  # a decay of 6 / 15 at step 5
    assert torch.equal(network[2].weight, before["2.weight"])


def test_validation_judges_the_averaged_weights(data: Data, tmp_path: Path) -> None:
    network, rows = trained(data, tmp_path, None, ema=0.9)
    assert rows[-1]["val_loss"] == validate(network, data.val, CPU).loss


def test_an_average_does_not_change_the_training(data: Data, tmp_path: Path) -> None:
    """With and without, the same steps are taken, so that the last weights that are trained are the same bits."""
    recorder = Recorder(tmp_path / "state")
    averaged, rows = trained(data, tmp_path, recorder, ema=0.9)
    plain, plain_rows = trained(data, tmp_path, None)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in plain_rows]
    assert [row["val_loss"] for row in rows] != [row["val_loss"] for row in plain_rows]
    last = recorder.steps[-1]
    assert all((value == last[name]).all() for name, value in arrays(plain).items())
    assert any((value != last[name]).any() for name, value in arrays(averaged).items())


def test_an_earlier_epoch_that_is_kept_has_its_averaged_weights(data: Data, tmp_path: Path) -> None:
    """Labels that turn wrong after two of ten epochs: what is kept validates as the best epoch did."""
    network, calls = small_network(0), []

    def spoiled(network, examples):
        calls.append(1)
        wrong = len(calls) > 2 * data.train.steps()
        return label_loss(0.0)(network, examples._replace(labels=(examples.labels + wrong) % 3))

    with TensorBoardWriter(None) as curves:
        context = Context(data, None, TrainConfig(ema=0.5), CPU, 5, curves)
        rows = train(network, spoiled, context, TrainSettings("test", 10, 0.05))
    kept = context.notes["kept_epoch"]["epoch"]
    assert kept < 10
    assert rows[kept - 1]["val_loss"] == validate(network, data.val, CPU).loss


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw"}], ids=["sgd", "adamw"])
def test_wherever_an_averaged_training_is_killed_it_ends_the_same(data: Data, tmp_path: Path, settings: dict) -> None:
    """Also in a validation, when the network has the averaged weights; what goes on starts from other weights."""
    wanted, history = trained(data, tmp_path / "curves", None, ema=0.9, **settings)
    for savings in range(1, SAVINGS + 1):
        path = tmp_path / f"{savings}.safetensors"
        with pytest.raises(Killed):
            trained(data, tmp_path / "curves", dying(path, savings), ema=0.9, **settings)
        found = trained(data, tmp_path / "curves", Checkpoint(path, "key", 10), seed=9, ema=0.9, **settings)
        assert_equal(found[0], wanted)
        assert found[1] == history


def rounded_training(data: Data, checkpoint: Checkpoint | None, ema: float = 0.5, seed: int = 0) -> nn.Module:
    """Trains with the rounding in the loop; batch norm is frozen after the first epoch and ranges after the second."""
    images = [images for images, _ in data.train.batches()]
    prepared = prepare(small_network(seed), images[0][:1], 7, qat=True)
    calibrate(prepared, images)

    def freeze(epoch: int) -> None:
        if epoch > 1:
            freeze_batch_norm(prepared)
        if epoch > 2:
            freeze_observers(prepared)

    with TensorBoardWriter(None) as curves:
        context = Context(data, None, TrainConfig(ema=ema, precision="float32"), CPU, 5, curves, checkpoint)
        train(prepared, label_loss(0.0), context, TrainSettings("test", EPOCHS, 0.05, freeze))
    return prepared


def test_with_rounding_in_the_loop_weights_are_averaged_and_grids_are_not(data: Data) -> None:
    averaged, plain = rounded_training(data, None), rounded_training(data, None, ema=0.0)
    found, state = averaged.state_dict(), plain.state_dict()
    assert all(not torch.equal(found[name], state[name]) for name, _ in averaged.named_parameters())
    activations = [name for name, module in averaged.named_modules() if type(module) is RuntimeFakeQuantize]
    assert len(activations) >= 3
    names = [f"{name}.{part}" for name in activations for part in ("scale", "zero_point")]
    assert all(torch.equal(found[name], state[name]) for name in names)


def test_an_averaged_network_with_rounding_converts_to_what_was_validated(data: Data) -> None:
    """The scales of the weights are those of the averaged weights; only the rounding of biases is new."""
    prepared, plain = rounded_training(data, None), rounded_training(data, None, ema=0.0)
    images = next(iter(data.val.batches()))[0]
    with torch.no_grad():
        outputs = prepared(images)
        assert (convert(prepared)(images) - outputs).abs().mean() < 1e-3
        assert (plain(images) - outputs).abs().mean() > 1e-2


@pytest.mark.parametrize("savings", [2, STEPS + 1, STEPS + 4, 2 * STEPS + 5, SAVINGS])
def test_a_training_with_rounding_that_is_killed_ends_the_same(data: Data, tmp_path: Path, savings: int) -> None:
    """In a step, in a validation, behind the freezing of batch norm and of the ranges, and at the end."""
    wanted = rounded_training(data, None)
    with pytest.raises(Killed):
        rounded_training(data, dying(tmp_path / "state", savings))
    found = rounded_training(data, Checkpoint(tmp_path / "state", "key", 10), seed=9)
    assert_equal(found, wanted)
