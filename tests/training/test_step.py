"""A step that runs out of memory is taken back and done in parts; one in bf16 leaves weights that are float32."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.config.schema import Config, TrainConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.methods.distillation.feature_terms import FeatureTerms
from compress.methods.distillation.losses import label_loss, record_outputs
from compress.methods.distillation.student_loss import LogitTerms, student_loss
from compress.methods.distillation.teacher_logits import compute_logits
from compress.pipeline import experiment as study
from compress.stages.quantize import quantize
from compress.stages.teacher import teacher
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.out_of_memory import is_out_of_memory
from compress.training.step import LossFn
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import UserError
from tests.pipeline.small_training import Killed, dying, small_network

CPU = torch.device("cpu")


@pytest.fixture
def data(tiny_config: Config) -> Data:
    return load_data(tiny_config.data, 0)


def plain_network(seed: int) -> nn.Module:
    """Nothing in it that lets one image of a batch depend on another, or on chance."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.Flatten(), nn.Linear(72, 3)
    )


class Full(torch.autograd.Function):
    """Memory that is full when the gradient comes back."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("a test's memory is full")


def small_memory(network: nn.Module, images: int, where: int | None) -> None:
    """`network` runs out of memory at more than so many images: in front of a layer, or in the backward pass (None)."""

    def check(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > images:
            raise torch.OutOfMemoryError("a test's memory is full")

    def fill(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return Full.apply(output) if len(output) > images else output

    if where is None:
        network[0].register_forward_hook(fill)
    else:
        network[where].register_forward_pre_hook(check)


def run(
    network: nn.Module,
    data: Data,
    loss: LossFn | None = None,
    checkpoint: Checkpoint | None = None,
    epochs: int = 2,
    **settings: object,
) -> Context:
    """Trains `network`, and returns the context with its notes."""
    with TensorBoardWriter(None) as curves:
        context = Context(data, None, TrainConfig(**settings), CPU, 5, curves, checkpoint)
        train(network, loss or label_loss(0.0), context, TrainSettings("test", epochs, 0.05))
    return context


def differing(found: nn.Module, wanted: nn.Module) -> list[str]:
    state = wanted.state_dict()
    return [name for name, value in found.state_dict().items() if not torch.equal(value, state[name])]


@pytest.mark.parametrize(("images", "parts"), [(31, 2), (16, 2), (15, 4), (1, 32)])
def test_a_batch_in_parts_is_the_same_step(
    data: Data, caplog: pytest.LogCaptureFixture, images: int, parts: int
) -> None:
    whole, network = plain_network(0), plain_network(0)
    assert "out_of_memory" not in run(whole, data).notes
    small_memory(network, images, 0)
    notes = run(network, data).notes
    for found, wanted in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert notes["out_of_memory"].startswith(f"each batch is taken in {parts} parts")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == parts.bit_length() - 1  # a line each time that it is halved, and no more at later steps
    assert warned[0].startswith("test: out of memory at step 1: each batch is taken in 2 parts")


def test_wherever_memory_runs_out_the_step_leaves_no_trace(data: Data) -> None:
    """Batch norm has counted the batch and dropout has drawn before the last layer, and before the backward pass."""
    networks = [small_network(0) for _ in range(3)]
    for network, where in zip(networks, (0, 6, None), strict=True):
        small_memory(network, 16, where)
        torch.manual_seed(1)
        run(network, data)
    assert differing(networks[1], networks[0]) == differing(networks[2], networks[0]) == []


def test_a_training_goes_on_in_parts(data: Data, tmp_path: Path) -> None:
    """In as many as when it was stopped, though all of the memory is free again."""
    wanted, stopped, found = (small_network(seed) for seed in (0, 0, 9))
    small_memory(wanted, 16, 0)
    small_memory(stopped, 16, 0)
    torch.manual_seed(1)
    run(wanted, data)
    torch.manual_seed(1)
    with pytest.raises(Killed):
        run(stopped, data, checkpoint=dying(tmp_path / "state", 2))
    notes = run(found, data, checkpoint=Checkpoint(tmp_path / "state", "key", 10)).notes
    assert differing(found, wanted) == []
    assert "2 parts" in notes["out_of_memory"]


def test_memory_too_small_for_one_image_ends_in_one_line(data: Data) -> None:
    network = plain_network(0)
    small_memory(network, 0, 0)
    message = r"received a test's memory is full at step 1 of 6 of test, with one image at a time; expected memory"
    with pytest.raises(UserError, match=message):
        run(network, data)


def test_other_errors_are_not_taken_for_a_lack_of_memory(data: Data) -> None:
    with pytest.raises(RuntimeError, match="negative dimension") as negative:
        torch.empty(-1)
    assert not is_out_of_memory(negative.value)
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**50)
    assert is_out_of_memory(full.value)
    assert is_out_of_memory(torch.OutOfMemoryError())


def test_memory_that_runs_out_beside_a_training_ends_in_one_line(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(study, "run_pipeline", full)
    with pytest.raises(UserError, match=r"can't allocate memory.*; to mend it: lower data\.batch_size"):
        study.run_experiment(tiny_config, tmp_path)


def test_a_step_done_again_holds_nothing_of_the_one_that_failed(data: Data) -> None:
    """The hooks of hints keep what a layer gave, with the graph behind it: the very memory that ran out."""
    network, wanted = plain_network(0), plain_network(1)
    small_memory(network, 16, 4)
    with record_outputs(network, ["0"]) as own, record_outputs(wanted, ["0"]) as theirs:
        held = []
        network.register_forward_pre_hook(lambda module, inputs: held.append(module.training and len(own)))
        features = FeatureTerms({"fitnet": 1.0}, {"0": "0"}, own, theirs)
        run(network, data, student_loss(compute_logits(wanted), LogitTerms(0.5, 1.0), features), epochs=1)
    assert set(held) == {0}


def test_bf16_trains_float32_weights(data: Data) -> None:
    networks = {precision: small_network(0) for precision in ("float32", "bf16")}
    kinds = []
    networks["bf16"][4].register_forward_hook(
        lambda module, inputs, output: kinds.append((module.training, output.dtype))
    )
    for precision, network in networks.items():
        torch.manual_seed(1)
        run(network, data, epochs=4, precision=precision)
    assert set(kinds) == {(True, torch.bfloat16), (False, torch.float32)}  # validation judges what is saved
    for name, value in networks["bf16"].state_dict().items():
        assert value.dtype == networks["float32"].state_dict()[name].dtype
        assert value.isfinite().all()
    assert 0 < (networks["bf16"][0].weight - networks["float32"][0].weight).abs().max() < 0.05


def test_a_training_in_bf16_goes_on_to_the_same_bits(data: Data, tmp_path: Path) -> None:
    wanted, stopped, found = (small_network(seed) for seed in (0, 0, 9))
    torch.manual_seed(1)
    run(wanted, data, precision="bf16")
    torch.manual_seed(1)
    with pytest.raises(Killed):
        run(stopped, data, checkpoint=dying(tmp_path / "state", 2), precision="bf16")
    run(found, data, checkpoint=Checkpoint(tmp_path / "state", "key", 10), precision="bf16")
    assert differing(found, wanted) == []


def test_the_grid_of_int8_is_trained_in_float32(tiny_config: Config, data: Data) -> None:
    """All of quantization-aware training is, whatever the precision of the other stages."""
    tiny_config.data.batch_size = 48
    torch.manual_seed(0)
    with TensorBoardWriter(None) as curves:
        context = Context(data, None, TrainConfig(), CPU, 0, curves)
        context.teacher = teacher(None, replace(tiny_config.teacher, epochs=1), context)
        made = []
        for precision in ("float32", "bf16"):
            torch.manual_seed(0)
            low = replace(context, train=TrainConfig(precision=precision))
            made.append(quantize(copy.deepcopy(context.teacher), tiny_config.quantize, low))
    assert all(torch.equal(value, made[1].state[name]) for name, value in made[0].state.items())
