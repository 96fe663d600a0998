"""The training of a detector: resumed at any step it ends with the same bits; students have their teacher's anchors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.config.schema import TrainConfig
from compress.config.stage_settings import DistillConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.methods.distillation.losses import label_loss
from compress.models import Architecture, build
from compress.models.artifact import Artifact, Spec
from compress.models.user_detector import to_detector
from compress.stages.distill import distill
from compress.tasks import TASKS
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import UserError
from tests.drawn_shapes import write_shapes
from tests.own_networks import GridDetector
from tests.pipeline.small_training import CPU, Killed, assert_equal, dying

DETECTION = TASKS["detection"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("drawn") / "shapes"
    write_shapes(root, {"train": 24, "val": 8, "test": 8})
    config = DataConfig(
        name="voc", root=str(root), task="detection", image_size=32, batch_size=8, box_augmentation="ssd", workers=0
    )
    return load_data(config, 0)


def trained(data: Data, checkpoint: Checkpoint | None, seed: int = 0) -> tuple[torch.nn.Module, list]:
    torch.manual_seed(seed)
    network = to_detector(GridDetector(2), "own:build", data.shape, 2)
    with TensorBoardWriter(None) as curves:
        context = Context(data, None, TrainConfig(optimizer="adamw"), CPU, 5, curves, checkpoint)
        return network, train(network, label_loss(0.0, DETECTION), context, TrainSettings("test", 2, 0.01))


def test_wherever_a_training_is_killed_it_ends_the_same(data: Data, tmp_path: Path) -> None:
    """Every image's crop, colours and flip come back, though torchvision draws them from torch's own generator."""
    wanted, history = trained(data, None)
    for savings in (1, 2, 4, 6):
        path = tmp_path / f"{savings}.safetensors"
        with pytest.raises(Killed):
            trained(data, dying(path, savings))
        found = trained(data, Checkpoint(path, "key", 10), seed=9)
        assert_equal(found[0], wanted)
        assert found[1] == history


def test_a_training_learns_boxes(data: Data) -> None:
    still = replace(data, augmentation=replace(data.augmentation, policy="none"))
    torch.manual_seed(0)
    network = to_detector(GridDetector(2), "own:build", data.shape, 2)
    with TensorBoardWriter(None) as curves:
        context = Context(still, None, TrainConfig(optimizer="adamw"), CPU, 5, curves)
        rows = train(network, label_loss(0.0, DETECTION), context, TrainSettings("test", 25, 0.03))
    assert rows[-1]["val_loss"] < 0.6 * rows[0]["val_loss"]
    assert rows[-1]["val_map50_percent"] > rows[0]["val_map50_percent"] + 10


def test_a_student_needs_the_teachers_anchors(data: Data) -> None:
    anchors = {"scales": [0.2, 0.9], "ratios": [2.0]}
    architecture = Architecture("ssdlite/resnet8", "small", 3, 2, 32, anchors)
    teacher = Artifact(build(architecture).eval(), Spec(vars(architecture), data.classes, {}, "detection"))
    with TensorBoardWriter(None) as curves:
        context = Context(data, teacher, TrainConfig(), CPU, 0, curves)
        with pytest.raises(UserError, match=r"distill\.student=ssdlite/depthwise, whose outputs are"):
            distill(teacher, DistillConfig(student="ssdlite/depthwise", epochs=1), context)
        made = distill(teacher, DistillConfig(student="ssdlite/resnet20", epochs=0, alpha=0.0), context)
    assert made.spec.architecture["anchors"] == anchors


def test_a_student_learns_from_maps_of_two_teachers(data: Data) -> None:
    torch.manual_seed(0)
    anchors = {"scales": [0.2, 0.95], "ratios": [2.0, 3.0]}
    architecture = Architecture("ssdlite/mobilenet_v3_small", "small", 3, 2, 32, anchors)
    networks = [build(architecture) for _ in range(2)]
    with torch.no_grad():
        for images, _ in [*data.train.batches()] * 8:  # statistics of batch norm, without which maps grow to 1e13
            networks[0].train()(images)
    context = Context(data, Artifact(networks[0].eval(), None), TrainConfig(), CPU, 5, TensorBoardWriter(None))
    settings = DistillConfig(
        losses=["kd", "at", "fitnet", "review"], teachers=["teacher", "teacher"], epochs=1, lr=0.001
    )
    made = distill(Artifact(networks[1], None), settings, context)
    assert made.network is networks[1]
    assert all(value.isfinite().all() for value in made.tensors().values())
