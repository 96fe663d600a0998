"""The stage distill with several losses, teachers and rounds: its files, its figures, and that a restart ends alike."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig, PruneConfig
from compress.data import load_data
from compress.methods.restore import restore
from compress.models.artifact import Artifact, write_model
from compress.stages import STAGES
from compress.stages.distill import distill
from compress.stages.prune import prune
from compress.stages.teacher import teacher
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import UserError
from compress.utils.files import MODEL, SPEC, digest_of_file, finish_stage, read_json, write_json
from tests.conftest import labelled_arrays, make_tiny_config
from tests.pipeline.small_training import CPU, Killed, assert_equal, dying


@pytest.fixture(scope="module")
def config(tiny_npz: Path) -> Config:
    config = make_tiny_config(tiny_npz)
    config.data.batch_size = 48  # two steps an epoch
    config.teacher.epochs = 2
    return config


@pytest.fixture(scope="module")
def trained(config: Config) -> Artifact:
    torch.manual_seed(0)
    context = Context(load_data(config.data, 0), None, config.train, CPU, 0, TensorBoardWriter(None))
    return teacher(None, config.teacher, context)


@pytest.fixture
def context(config: Config, trained: Artifact, tmp_path: Path) -> Iterator[Context]:
    data = load_data(config.data, 0)
    with TensorBoardWriter(tmp_path / "curves") as curves:
        yield Context(data, copy.deepcopy(trained), config.train, CPU, 0, curves)


@pytest.fixture
def student(context: Context) -> Artifact:
    """The teacher with half of its inner filters gone."""
    return prune(copy.deepcopy(context.teacher), PruneConfig(round_to=1, reconstruction_samples=0, epochs=0), context)


@pytest.fixture
def run_folder(trained: Artifact, tmp_path: Path) -> Path:
    """A run of two float stages and a quantized one, which nothing reads but its model.json."""
    folder = tmp_path / "run"
    for number, name in enumerate(("teacher", "distill", "quantize"), 1):
        stage = folder / f"{number:02d}_{name}"
        stage.mkdir(parents=True)
        write_model(copy.deepcopy(trained), stage)
        finish_stage(stage, {"key": name})
    write_json(stage / SPEC, read_json(stage / SPEC) | {"quantization": {"method": "quantize"}})
    return folder


ALL = DistillConfig(
    losses=["kd_standardized", "at=100", "fitnet=1", "review"],
    student="mobilenet_v3_small",
    rounds=2,
    epochs=2,
    lr=0.01,
)


def test_losses_projections_teachers_and_rounds_together(
    context: Context, run_folder: Path, trained: Artifact, tmp_path: Path
) -> None:
    save_file(trained.tensors(), tmp_path / "weights.safetensors")
    names = [str(run_folder), "teacher", str(tmp_path / "weights.safetensors")]
    received = copy.deepcopy(context.teacher)
    made = distill(received, replace(ALL, teachers=names, teacher_weights="accuracy"), context)
    assert [row["teacher"] for row in made.notes["teachers"]] == names
    assert [row["weight"] for row in made.notes["teachers"]] == pytest.approx([1 / 3] * 3)  # the same network
    assert len({row["val_top1_percent"] for row in made.notes["teachers"]}) == 1
    assert len(made.notes["history"]) == STAGES["distill"].epochs(ALL) == 4
    assert context.notes["kept_epoch"]["training"] == "round 2 of 2"
    assert made.spec.architecture["model"] == "mobilenet_v3_small"

    (tmp_path / "made").mkdir()
    write_model(made, tmp_path / "made")
    assert not [name for name in made.tensors() if name.startswith(("parts.", "network."))]
    images = torch.cat([images for images, _ in context.data.val.batches()])
    with torch.no_grad():
        restored = restore(tmp_path / "made", CPU).network(images)
        torch.testing.assert_close(restored, made.network.eval()(images), rtol=1e-4, atol=1e-4)


def run(context: Context, student: Artifact, settings: DistillConfig, checkpoint: Checkpoint | None) -> Artifact:
    context = replace(context, checkpoint=checkpoint, finished=[], notes={})
    torch.manual_seed(3)
    return distill(copy.deepcopy(student), settings, context)


@pytest.mark.parametrize("savings", [1, 6, 10, 13])
def test_a_restart_ends_alike_with_learned_parts_rounds_and_mixed_images(
    context: Context, student: Artifact, tmp_path: Path, savings: int
) -> None:
    """An epoch of two steps is saved four times, and a round once more at its end: in the first round, and later."""
    settings = DistillConfig(
        losses=["dkd", "fitnet", "rkd"], hint_layers=["layer1.0.conv1", "layer2"], rounds=2, epochs=2
    )
    context.train = replace(context.train, mixup=0.4, cutmix=1.0)
    wanted = run(context, student, settings, None)
    with pytest.raises(Killed):
        run(context, student, settings, dying(tmp_path / "state", savings))
    found = run(context, student, settings, Checkpoint(tmp_path / "state", "key", 10))
    assert_equal(found.network, wanted.network)
    assert found.notes == wanted.notes


def test_a_second_round_learns_from_the_first_and_starts_where_it_did(
    context: Context, student: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compress.stages.distill as module

    seen: list[tuple[dict, torch.nn.Module, torch.nn.Module]] = []
    train_round = module._train_round

    def watched(network: torch.nn.Module, teacher: torch.nn.Module, *rest: object) -> list:
        seen.append((copy.deepcopy(network.state_dict()), network, teacher))
        return train_round(network, teacher, *rest)

    monkeypatch.setattr(module, "_train_round", watched)
    made = distill(student, DistillConfig(rounds=2, epochs=1), context)
    assert all(torch.equal(value, seen[1][0][name]) for name, value in seen[0][0].items())
    assert seen[0][2] is context.teacher.network
    assert seen[1][2] is seen[0][1]
    assert made.network is student.network is seen[1][1]


def test_two_equal_teachers_are_as_one(context: Context, student: Artifact) -> None:
    one = run(context, student, DistillConfig(epochs=1), None)
    two = run(context, student, DistillConfig(epochs=1, teachers=["teacher", "teacher"]), None)
    for name, value in one.tensors().items():
        torch.testing.assert_close(two.tensors()[name], value, rtol=1e-3, atol=1e-4)


def test_teachers_for_other_data_are_refused_by_name(context: Context, run_folder: Path, student: Artifact) -> None:
    stage = run_folder / "02_distill"
    spec = read_json(stage / SPEC)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            distill(student, DistillConfig(teachers=[str(run_folder)]), context)

    write_json(stage / SPEC, spec | {"classes": ["a", "b", "c"]})
    refused(r"distill\.teachers with .*run, whose classes are \['a', 'b', 'c'\]; expected the classes of this run")
    write_json(stage / SPEC, spec | {"input": spec["input"] | {"mean": [0.9]}})
    refused(r"whose normalisation are \[\[0\.9\]")
    write_json(stage / SPEC, spec | {"task": "multilabel"})
    refused("whose task are multilabel")


def test_the_key_has_the_digests_of_the_teachers_files(config: Config, run_folder: Path) -> None:
    key = STAGES["distill"].key
    assert key(config, (1, 8, 8)) == {}
    named = replace(config, distill=DistillConfig(teachers=[str(run_folder), "teacher"]))
    stage = run_folder / "02_distill"
    assert key(named, (1, 8, 8)) == {"teachers": [[digest_of_file(stage / name) for name in (MODEL, SPEC)], []]}
    before = key(named, (1, 8, 8))
    (stage / MODEL).write_bytes(b"other")
    assert key(named, (1, 8, 8)) != before


def test_teachers_that_cannot_be_found_are_refused(config: Config, run_folder: Path, tmp_path: Path) -> None:
    def refused(name: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            STAGES["distill"].key(replace(config, distill=DistillConfig(teachers=[str(name)])), (1, 8, 8))

    refused(tmp_path / "nowhere", r"distill\.teachers with .*nowhere, which does not exist; .* a file that moved")
    refused(tmp_path, "a folder without a finished float stage")
    refused(run_folder / "03_quantize", "a quantized stage")


@pytest.mark.parametrize("losses", [["kd", "at", "fitnet", "review"], ["kd", "rkd"]])
def test_independent_labels_are_distilled_and_mixed_too(tmp_path: Path, config: Config, losses: list[str]) -> None:
    np.savez(tmp_path / "labels.npz", **labelled_arrays())
    data = load_data(replace(config.data, root=str(tmp_path / "labels.npz"), task="multilabel"), 0)
    torch.manual_seed(0)
    context = Context(data, None, replace(config.train, cutmix=1.0), CPU, 0, TensorBoardWriter(None))
    context.teacher = teacher(None, replace(config.teacher, epochs=1), context)
    made = distill(copy.deepcopy(context.teacher), DistillConfig(losses=losses, epochs=1), context)
    assert all(value.isfinite().all() for value in made.tensors().values())
