"""A training that is stopped goes on to the very bits of one that was not; no damaged or foreign state is used."""

import copy
import os
import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from compress.config.schema import Config
from compress.data import load_data
from compress.data.dataset import Batch, Data
from compress.methods.distillation.losses import label_loss
from compress.models.artifact import Artifact, write_model
from compress.pipeline import compute
from compress.pipeline.run import run_pipeline
from compress.stages import STAGES, load_stage
from compress.training import checkpoint as checkpoint_module
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.distributed import ProcessGroup
from compress.training.loop import LossFn
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import UserError
from compress.utils.files import MODEL, SPEC, STAGE, TRAINING, digest_of_file, read_json, training_file
from tests.config.test_config import composed
from tests.conftest import make_tiny_config
from tests.data.test_data import image_folder
from tests.launch.test_command import ROOT, command
from tests.pipeline.small_training import CPU, EPOCHS, SAVINGS, STEPS, Killed, assert_equal, dying, small_training


def randoms() -> tuple[float, float, float]:
    """The next random numbers that anyone would draw."""
    return random.random(), float(np.random.normal()), torch.rand(()).item()


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}, {"optimizer": "adamw"}], ids=["sgd", "plain_sgd", "adamw"])
def test_wherever_a_training_is_killed_it_ends_the_same(data: Data, tmp_path: Path, settings: dict) -> None:
    """What goes on starts from other weights and other random numbers: all that counts is in the file."""
    wanted, history = small_training(data, tmp_path / "curves", None, **settings)
    drawn = randoms()
    for savings in range(1, SAVINGS + 1):
        path = tmp_path / f"{savings}.safetensors"
        with pytest.raises(Killed):
            small_training(data, tmp_path / "curves", dying(path, savings), **settings)
        found = small_training(data, tmp_path / "curves", Checkpoint(path, "key", 10), seed=9, **settings)
        assert_equal(found[0], wanted)
        assert found[1] == history
        assert randoms() == drawn


def test_a_training_killed_after_every_step_ends_the_same(data: Data, tmp_path: Path) -> None:
    wanted, history = small_training(data, tmp_path / "curves", None)
    path, lives = tmp_path / "state.safetensors", 0
    while True:
        lives += 1
        try:
            found = small_training(data, tmp_path / "curves", dying(path, 1 + lives % 2), seed=lives - 1)
        except Killed:
            continue
        break
    assert lives > EPOCHS * STEPS
    assert_equal(found[0], wanted)
    assert found[1] == history


def test_the_curves_of_a_killed_training_are_those_of_one_that_was_not(data: Data, tmp_path: Path) -> None:
    def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(folder)).Reload()
        return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    small_training(data, tmp_path / "whole", None)
    with pytest.raises(Killed):
        small_training(data, tmp_path / "killed", dying(tmp_path / "state", 2 + STEPS + 2))
    small_training(data, tmp_path / "killed", Checkpoint(tmp_path / "state", "key", 10))
    found = curves(tmp_path / "killed")
    assert [step for step, _ in found["step/loss"]] == list(range(EPOCHS * STEPS))
    assert [epoch for epoch, _ in found["epoch/val_loss"]] == list(range(1, EPOCHS + 1))
    assert found == curves(tmp_path / "whole")


@dataclass
class Chain:
    """A run's stages without the files and figures: what goes into each and what an undisturbed one gives."""

    config: Config
    data: Data
    given: dict[str, Artifact | None]
    made: dict[str, Artifact]

    def run(self, name: str, folder: Path, checkpoint: Checkpoint | None, seed: int = 7) -> Artifact:
        compute.seed_everything(seed)
        given, teacher = copy.deepcopy((self.given[name], self.made.get("teacher")))
        with TensorBoardWriter(folder) as curves:
            context = Context(self.data, teacher, self.config.train, CPU, seed, curves, checkpoint)
            return load_stage(name)(given, getattr(self.config, name), context)


@pytest.fixture(scope="module")
def chain(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """With epochs enough for batch norm and ranges to be frozen while int8 is trained."""
    config = make_tiny_config(tiny_npz)
    config.data.batch_size, config.distill.hint_layers = 48, ["layer2"]
    config.teacher.epochs = config.prune.epochs = config.distill.epochs = 2
    config.quantize.epochs = 4
    chain = Chain(config, load_data(config.data, 0), {}, {})
    last = None
    # dynamic_width and early_exit exclude each other; the search has a test of its own.
    for name in [name for name in STAGES if name not in ("dynamic_width", "search_architecture")]:
        chain.given[name] = copy.deepcopy(last)
        last = chain.made[name] = chain.run(name, tmp_path_factory.mktemp("curves"), None)
    return chain


def model_digests(artifact: Artifact, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    write_model(artifact, folder)
    return [digest_of_file(folder / name) for name in (MODEL, SPEC)]


# Savings of each life; an epoch of two steps, one validation batch and its end has four of them. Those of int8 end
# before the first validation, and in the middle of the epochs behind the freezing of batch norm and of the ranges.
@pytest.mark.parametrize(
    ("name", "lives"), [("teacher", [1, 4]), ("prune", [2, 3]), ("distill", [1, 5]), ("quantize", [3, 7, 4])]
)
def test_a_stage_killed_in_its_training_ends_the_same(
    chain: Chain, tmp_path: Path, name: str, lives: list[int]
) -> None:
    """All of it: what came before the training is done again, and gives the same description and figures too."""
    for savings in lives:
        with pytest.raises(Killed):
            chain.run(name, tmp_path / "curves", dying(tmp_path / "state", savings))
    found, wanted = chain.run(name, tmp_path / "curves", Checkpoint(tmp_path / "state", "key", 10)), chain.made[name]
    assert model_digests(found, tmp_path / "found") == model_digests(wanted, tmp_path / "wanted")
    assert found.notes == wanted.notes
    assert found.left_out == wanted.left_out


@pytest.mark.parametrize(
    ("name", "undone"), [("teacher", None), ("prune", "prune.reconstruct"), ("quantize", "quantize.calibrate")]
)
def test_no_weight_or_range_from_before_the_training_is_needed(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, undone: str | None
) -> None:
    """Other initial weights, no refitting, no calibration: the file replaces all of it."""
    with pytest.raises(Killed):
        chain.run(name, tmp_path / "curves", dying(tmp_path / "state", 3))
    if undone:
        monkeypatch.setitem(load_stage(name).__globals__, undone.partition(".")[2], lambda *_: {})
    found = chain.run(name, tmp_path / "curves", Checkpoint(tmp_path / "state", "key", 10), seed=8)
    assert model_digests(found, tmp_path / "found") == model_digests(chain.made[name], tmp_path / "wanted")


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def without_notes(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("spoil", "key", "reason"),
    [
        (damaged, "key", "its digest is not the one"),
        (without_notes, "key", "its digest is not the one"),
        (cut_off, "key", "it is damaged"),
        (emptied, "key", "it is damaged"),
        (lambda path: None, "another key", "other settings"),
    ],
    ids=["damaged", "without_notes", "cut_off", "emptied", "foreign"],
)
def test_a_state_that_cannot_be_trusted_is_set_aside(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], key: str, reason: str
) -> None:
    wanted, _ = small_training(data, tmp_path / "curves", None)
    with pytest.raises(Killed):
        small_training(data, tmp_path / "curves", dying(tmp_path / "state", 4))
    spoil(tmp_path / "state")
    content = (tmp_path / "state").read_bytes()
    found, _ = small_training(data, tmp_path / "curves", Checkpoint(tmp_path / "state", key, 10))
    assert_equal(found, wanted)
    assert reason in caplog.text
    assert "starts anew" in caplog.text
    assert (tmp_path / "state.set_aside").read_bytes() == content
    assert not (tmp_path / "state").exists()


def test_a_state_is_saved_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key", 10)
    now = [checkpoint._saved_s]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])
    assert not checkpoint.is_due()
    now[0] += 600.001
    assert checkpoint.is_due()
    checkpoint.save({"a": torch.ones(2)}, {})
    assert not checkpoint.is_due()
    now[0] += 599
    assert not checkpoint.is_due()
    assert Checkpoint(tmp_path / "state", "key", 0).is_due()


def spoiled(step: int, value: float) -> LossFn:
    """The loss of labels, which is `value` times that at one step."""
    calls = []

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        found, logits = label_loss(0.0)(network, examples)
        return found * (value if len(calls) == step else 1.0), logits

    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_leaves_the_last_good_state(data: Data, tmp_path: Path, value: float) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key", 0)
    message = (
        rf"a loss of {value} at step 5 of 9 \(epoch 2\) of test, where .* expected a finite one; .* lower test\.lr"
    )
    with pytest.raises(UserError, match=message):
        small_training(data, tmp_path / "curves", checkpoint, spoiled(5, value))
    tensors, values = checkpoint.load()
    assert len(tensors["losses.steps"]) == 4
    assert (values["epoch"], values["batches"]) == (2, 1)
    wanted, _ = small_training(data, tmp_path / "curves", None)
    found, _ = small_training(data, tmp_path / "curves", checkpoint)
    assert_equal(found, wanted)


def test_weights_that_are_no_numbers_are_never_saved(data: Data, tmp_path: Path) -> None:
    """The loss is finite and its gradient is not."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf")

    calls = []

    def loss(network: nn.Module, examples: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        found, logits = label_loss(0.0)(network, examples)
        return Overflow.apply(found) if len(calls) == 6 else found, logits

    checkpoint = Checkpoint(tmp_path / "state", "key", 0)
    with pytest.raises(UserError, match=r"a weight of (nan|inf) at step 6 of 9 \(epoch 2\) of test"):
        small_training(data, tmp_path / "curves", checkpoint, loss)
    assert len(checkpoint.load()[0]["losses.steps"]) == 5


def test_the_key_does_not_depend_on_how_often_is_saved(chain: Chain) -> None:
    """It would cost every run that was made with another one, and changes nothing that is computed."""
    often = replace(chain.config, train=replace(chain.config.train, checkpoint_minutes=0.5))
    other = replace(chain.config, train=replace(chain.config.train, momentum=0.5))
    runs = (
        compute.RunContext(config, chain.data, torch.device("cpu"), 1, ProcessGroup(), None)
        for config in (chain.config, often, other)
    )
    found, same, changed = (compute.stage_inputs("teacher", run, None) for run in runs)
    assert found == same != changed


@pytest.mark.e2e
def test_a_terminated_run_says_how_to_go_on_and_ends_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Terminated as a job scheduler does it, with all its processes: those that decode the images too."""
    image_folder(tmp_path / "images", count=24)
    arguments = [
        "recipe=mobilenet_int8", "stages=[teacher]", "data=imagefolder", f"data.root={tmp_path}/images",
        "data.image_size=16", "data.batch_size=16", "data.workers=1", "teacher.model=resnet8", "teacher.epochs=10",
        "measure.repetitions=3", "measure.batch_size=2", "threads=1", "cache.enabled=false",
        "train.precision=float32",  # as the tests' own process
    ]  # fmt: skip
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [*command(*arguments), f"hydra.run.dir={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        for line in process.stdout:
            if "teacher: epoch 2" in line:
                os.killpg(process.pid, signal.SIGTERM)
        errors = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, errors
    (line,) = errors.splitlines()
    assert line.startswith("compress: received SIGTERM after step ")
    assert line.endswith(f"of teacher; its state is saved; to go on: the same command with hydra.run.dir={folder}")
    stage = folder / "01_teacher"
    assert training_file(stage).is_file()
    assert not (stage / STAGE).exists()

    caplog.set_level("INFO", "compress")
    config = composed(*arguments)
    run_pipeline(config, folder)
    assert "teacher: goes on after step " in caplog.text
    assert not list(folder.glob(f"*{TRAINING}*"))
    seed = compute.stage_seed(config, "teacher")
    undisturbed = Chain(config, load_data(config.data, config.seed), {"teacher": None}, {})
    whole = undisturbed.run("teacher", tmp_path / "curves", None, seed)
    assert model_digests(whole, tmp_path / "whole")[0] == digest_of_file(stage / MODEL)
    found, wanted = (read_json(place / SPEC) for place in (stage, tmp_path / "whole"))
    assert found | {"temperature": 1.0} == wanted  # which is measured later
