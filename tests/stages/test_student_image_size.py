"""A student with another input size than its teacher: a new network, or that of the stage before."""

import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig
from compress.config.validation import check
from compress.evaluation.flops import count_cost
from compress.methods.restore import restore
from compress.models import Architecture, build
from compress.models.artifact import write_model
from compress.pipeline.compute import require_networks_fit
from compress.stages.distill import distill
from compress.training.context import Context
from compress.utils.errors import UserError
from tests.stages.taught import taught

CPU = torch.device("cpu")


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    """The teacher is resnet8 on 8 pixels."""
    yield from taught(replace(tiny_config, teacher=replace(tiny_config.teacher, epochs=1)), tmp_path)


@pytest.mark.parametrize(("side", "stem"), [(12, "small"), (72, "imagenet")])
def test_a_new_student_is_built_for_its_own_size(context: Context, tmp_path: Path, side: int, stem: str) -> None:
    losses = ["kd", "at", "fitnet", "review", "rkd"]
    settings = DistillConfig(student="shufflenet_v2_x0_5", student_image_size=side, losses=losses, epochs=1)
    made = distill(copy.deepcopy(context.teacher), settings, context)
    architecture = Architecture("shufflenet_v2_x0_5", stem, 1, 3, side)
    assert made.spec.architecture == asdict(architecture)
    assert made.spec.input == context.teacher.spec.input
    shape = context.data.shape
    assert count_cost(made.network.eval(), shape) == count_cost(build(architecture).eval(), (1, side, side))

    write_model(made, tmp_path)
    rebuilt = restore(tmp_path, CPU).network
    images = torch.cat([images for images, _ in context.data.val.batches()])
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images), made.network.eval()(images), rtol=1e-4, atol=1e-4)


def test_the_network_of_the_stage_before_keeps_weights_names_and_layers(context: Context) -> None:
    given = copy.deepcopy(context.teacher)
    settings = DistillConfig(student_image_size=12, hint_layers=["layer1.0.conv1", "layer2"], epochs=0)
    made = distill(given, settings, context)
    assert made.spec.changes == [{"method": "resize_input", "size": [12, 12]}]
    assert made.spec.architecture == context.teacher.spec.architecture
    weights = context.teacher.tensors()
    assert list(made.tensors()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in made.tensors().items())
    shape = context.data.shape
    assert count_cost(made.network, shape)[1] > 2 * count_cost(context.teacher.network, shape)[1]


def test_a_library_s_network_that_needs_another_size_is_refused_before_any_training(
    context: Context, tiny_config: Config
) -> None:
    distill = DistillConfig(student="torchvision/vit_b_16", student_image_size=40)
    with pytest.raises(UserError, match=r"for images of 40 pixels.*: set distill\.student_image_size=224, or name"):
        require_networks_fit(replace(tiny_config, distill=distill), context.data)


def test_boxes_are_refused() -> None:
    config = Config(data=DataConfig(name="voc", task="detection"), distill=DistillConfig(student_image_size=64))
    with pytest.raises(UserError, match=r"student_image_size=64 with data\.task=detection; .*or set data\.image_size"):
        check(config)
