"""Figures of each validation image: the same from however many parts, and compared in pairs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.config.schema import Config, TrainConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.methods.distillation.losses import label_loss
from compress.models.cifar_resnet import CifarResNet
from compress.report.seen_validation import seen_validation
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.training.tensorboard import TensorBoardWriter
from compress.training.validation import BEYOND_CHANCE, split_logits, standard_errors_better, validate

CPU = torch.device("cpu")


@pytest.fixture
def data(tiny_config: Config) -> Data:
    return load_data(tiny_config.data, 0)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return CifarResNet(8, 1, 3).eval()


@pytest.mark.parametrize("parts", [1, 3])
def test_each_image_has_its_loss_its_mistake_and_its_distance(data: Data, parts: int) -> None:
    student, teacher = network(0), network(1)
    teacher_logits = split_logits(teacher, data.val, CPU)
    found = validate(student, data.val, CPU, teacher_logits, micro_batches=parts)
    logits, labels = split_logits(student, data.val, CPU), data.val.labels
    shares, teacher_shares = logits.softmax(1), teacher_logits.softmax(1)
    wanted = (teacher_shares * (teacher_shares.log() - shares.log())).sum(1)
    assert torch.allclose(found.distances.float(), wanted, atol=1e-5)
    assert torch.allclose(found.losses.float(), F.cross_entropy(logits, labels, reduction="none"), atol=1e-5)
    assert found.score_percent == 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
    assert found.scores is found.distances


def test_without_a_teacher_mistakes_are_the_scores(data: Data) -> None:
    found = validate(network(0), data.val, CPU)
    assert found.distance is None
    assert found.scores is found.mistakes


def test_a_teacher_has_no_distance_to_itself(data: Data) -> None:
    teacher = network(1)
    assert validate(teacher, data.val, CPU, split_logits(teacher, data.val, CPU)).distance == pytest.approx(0, abs=1e-6)


def test_standard_errors_are_those_of_the_paired_differences() -> None:
    scores, others = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 4.0, 6.0])
    assert standard_errors_better(scores, others) == pytest.approx(1.5 / (math.sqrt(1 / 3) / 2))
    assert standard_errors_better(others, scores) == -standard_errors_better(scores, others)
    assert standard_errors_better(scores, scores) == 0
    assert standard_errors_better(scores, scores + 1) == math.inf


def test_what_is_shared_by_both_does_not_hide_a_difference() -> None:
    """Images differ a hundred times more than the epochs do, but each of them is a little better."""
    hard = 100 * torch.rand(50, generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.rand(50, generator=torch.Generator().manual_seed(1))
    assert standard_errors_better(hard, hard + noise) > BEYOND_CHANCE
    assert standard_errors_better(hard + noise, hard) <= BEYOND_CHANCE


def test_chance_alone_is_seldom_beyond_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1000, 2, 200, generator=generator)
    assert sum(standard_errors_better(first, second) > BEYOND_CHANCE for first, second in scores) <= 5


def test_a_student_keeps_the_epoch_nearest_to_its_teacher(data: Data) -> None:
    """Its training ruins it: every epoch takes it further from the teacher that it starts as."""
    student, teacher = network(1), network(1)
    context = Context(data, None, TrainConfig(warmup=0.0), CPU, 5, TensorBoardWriter(None))
    rows = train(student, label_loss(0.9), context, TrainSettings("test", 4, 0.5, teacher=teacher))
    distances = [row["val_teacher_kl_nats"] for row in rows]
    logits = split_logits(teacher, data.val, CPU)
    kept = context.notes["kept_epoch"]["epoch"]
    assert validate(student, data.val, CPU, logits).distance == pytest.approx(distances[kept - 1], rel=1e-3)


def record(source: str = "train", **teacher: object) -> dict:
    settings = {"checkpoint": "file", "weights": None, "factory": None, "epochs": 0} | teacher
    return {"config": {"teacher": settings}, "validation": {"from": source, "images": 400}}


def metrics(validation: float, test: float) -> dict:
    return {
        "deployed_val_top1_percent": validation, "val_images": 400, "deployed_top1_percent": test, "images": 1000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "figures", "said"),
    [
        (record(), metrics(100.0, 92.7), "data.val_from=test"),
        (record("own"), metrics(100.0, 92.7), "the data's own split"),
        (record("own", weights="IMAGENET1K_V1", checkpoint=None, epochs=3), metrics(99.0, 90.0), "own split"),
        (record("test"), metrics(100.0, 92.7), None),  # these are images of the test split
        (record(), metrics(94.0, 92.7), None),  # chance
        (record(), metrics(90.0, 99.0), None),  # fewer mistakes on test
        (record(checkpoint=None, epochs=12), metrics(100.0, 92.7), None),  # trained here, without these images
        (record(), metrics(100.0, 100.0), None),
        ({"config": record()["config"]}, metrics(100.0, 92.7), None),  # a run of an earlier version
    ],
)
def test_a_teacher_that_knows_its_validation_images_is_noticed(stage: dict, figures: dict, said: str | None) -> None:
    found = seen_validation(stage, figures)
    assert (found is None) if said is None else (said in found)
