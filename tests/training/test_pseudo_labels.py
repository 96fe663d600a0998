"""Train images without labels: the teacher's answers stand in for them, wherever they are read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from compress.config.data_settings import DataConfig
from compress.config.schema import Config
from compress.data import load_data
from compress.data.dataset import NO_LABEL
from compress.models import Architecture, build
from compress.pipeline.run import run_pipeline
from compress.training.pseudo_labels import add_pseudo_labels
from compress.utils.errors import UserError
from compress.utils.files import MODEL, STAGE, read_json
from tests.conftest import tiny_arrays

CPU = torch.device("cpu")


@pytest.fixture
def teacher() -> torch.nn.Module:
    """Untrained, and brought to give each class to some of the images."""
    torch.manual_seed(0)
    network = build(Architecture("resnet8", "small", 1, 3)).eval()
    images = torch.from_numpy(tiny_arrays()["train_images"]).float()[:, None]
    with torch.no_grad():
        network.linear.bias -= network((images - images.mean()) / images.std()).mean(0)
    return network


def unlabelled(config: Config, folder: Path, teacher: torch.nn.Module) -> Config:
    """The tiny config on the same images without their train labels, with `teacher` as the trained network."""
    arrays = tiny_arrays()
    np.savez(folder / "unlabelled.npz", **{name: value for name, value in arrays.items() if name != "train_labels"})
    save_file(teacher.state_dict(), folder / "teacher.safetensors")
    config = replace(config, stages=["teacher", "distill"], data=replace(config.data, root=f"{folder}/unlabelled.npz"))
    config.teacher = replace(config.teacher, epochs=0, checkpoint=f"{folder}/teacher.safetensors")
    return config


def test_the_teachers_answers_are_the_labels(tmp_path: Path, tiny_config: Config, teacher: torch.nn.Module) -> None:
    data = load_data(unlabelled(tiny_config, tmp_path, teacher).data, seed=0)
    assert not data.labelled
    assert data.classes == ["0", "1", "2"]
    told = add_pseudo_labels(teacher, data, CPU)
    assert told.labelled
    for split in (told.train, told.val):
        with torch.no_grad():
            answers = torch.cat([teacher(images).argmax(1) for images, _ in split.batches()])
        assert torch.equal(split.labels, answers)
    assert len(told.train.labels.unique()) > 1
    assert torch.equal(told.test.labels, data.test.labels)
    assert bool((data.train.labels == NO_LABEL).all())  # what was read stays as it was


@pytest.mark.e2e
def test_a_run_learns_from_them(tmp_path: Path, tiny_config: Config, teacher: torch.nn.Module) -> None:
    """It ends with the weights that the same images give when the teacher's answers are written beside them.

    Balanced classes are those of the answers.
    """
    config = unlabelled(tiny_config, tmp_path, teacher)
    config.train = replace(config.train, class_weights="balanced")
    run_pipeline(config, tmp_path / "run")
    record = read_json(tmp_path / "run" / "02_distill" / STAGE)
    assert "teacher's likeliest class" in record["notes"]["labels"]
    told = add_pseudo_labels(teacher, load_data(config.data, config.seed), CPU)
    arrays = tiny_arrays()
    for name, split in (("train", told.train), ("val", told.val)):
        arrays[f"{name}_images"] = split.pixels.images[split.index, 0].numpy()
        arrays[f"{name}_labels"] = split.labels.numpy()
    np.savez(tmp_path / "told.npz", **arrays)
    run_pipeline(replace(config, data=replace(config.data, root=f"{tmp_path}/told.npz")), tmp_path / "told")
    files = [read_json(tmp_path / name / "02_distill" / STAGE)["files"][MODEL] for name in ("run", "told")]
    assert files[0] == files[1]


def test_a_teacher_cannot_be_trained_without_labels(
    tmp_path: Path, tiny_config: Config, teacher: torch.nn.Module
) -> None:
    config = unlabelled(tiny_config, tmp_path, teacher)
    config.teacher.epochs = 1
    with pytest.raises(UserError, match=r"without labels and teacher\.epochs=1"):
        run_pipeline(config, tmp_path / "run")


def test_a_train_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    for place in ("train", "test/cat", "test/dog"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / place / f"{number}.png")
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=8, workers=0, batch_size=4)
    data = load_data(config, seed=0)
    assert data.classes == ["cat", "dog"]
    assert not data.labelled
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4
    assert (len(data.train), len(data.val)) == (3, 1)
