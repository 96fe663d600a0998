"""Settings are refused before any work, in a line that tells what to do."""

import math

import pytest
from hydra import compose, initialize_config_dir

from compress.config.compose import register, to_config
from compress.config.data_settings import DataConfig
from compress.config.options import describe
from compress.config.paths import CONF, RECIPES
from compress.config.schema import Config
from compress.config.stage_settings import PruneConfig, QuantizeConfig, TeacherConfig
from compress.config.validation import check
from compress.launch.help import help_page
from compress.utils.errors import UserError

# The others train with the rounding.
CALIBRATED = (
    "mobilenet_int8_ptq", "resnet56_cifar_int8", "resnet56_cifar_factorized_int8", "resnet56_cifar_search_int8",
    "resnet56_cifar_early_exit_int8", "resnet56_cifar_dynamic_width_int8", "unlabelled_int8", "ssdlite_bccd_int8",
    "ssdlite_voc_int8",
)  # fmt: skip
RECIPE_NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def composed(*overrides: str) -> Config:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_config(compose("config", list(overrides)))


@pytest.mark.parametrize("ratio", [-0.1, 0.96, 1.5, math.nan, math.inf])
def test_a_number_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"received prune\.ratio=.*; expected a number from 0\.0 to 0\.95"):
        check(Config(prune=PruneConfig(ratio=ratio)))


@pytest.mark.parametrize("points", [-0.1, 101, math.nan])
def test_a_drop_is_null_or_a_share_of_all_points(points: float) -> None:
    check(Config())
    with pytest.raises(UserError, match=r"quantize\.max_drop_points=.*; expected a number from 0 to 100"):
        check(Config(quantize=QuantizeConfig(max_drop_points=points)))
    assert composed("recipe=mobilenet_int8").quantize.max_drop_points is None
    assert composed("recipe=mobilenet_int8", "quantize.max_drop_points=0.5").quantize.max_drop_points == 0.5


def test_a_name_outside_its_choices_is_refused() -> None:
    with pytest.raises(UserError, match=r"prune\.importance=magic; expected one of l1, l2"):
        check(Config(prune=PruneConfig(importance="magic")))


@pytest.mark.parametrize(("mean", "std"), [([0.5], None), ([0.5], [0.0]), ([0.5, 0.5], [0.5]), ([], [])])
def test_a_normalisation_that_cannot_work_is_refused(mean: list[float], std: list[float] | None) -> None:
    with pytest.raises(UserError, match=r"data\.mean"):
        check(Config(data=DataConfig(mean=mean, std=std)))


def test_a_teacher_without_weights_needs_epochs() -> None:
    with pytest.raises(UserError, match=r"teacher\.epochs=0"):
        check(Config(teacher=TeacherConfig(epochs=0)))


@pytest.mark.parametrize("asked", ["equalize=true", "rounding=adaround"])
def test_a_correction_after_training_is_refused_with_training(asked: str) -> None:
    name, value = asked.split("=")
    settings = {name: True if value == "true" else value}
    check(Config(quantize=QuantizeConfig(mode="ptq", **settings)))
    with pytest.raises(UserError, match=f"quantize.mode=qat with quantize.{asked}; expected mode=ptq"):
        check(Config(quantize=QuantizeConfig(mode="qat", **settings)))


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_every_recipe_composes(recipe: str) -> None:
    config = composed(f"recipe={recipe}", "teacher.checkpoint=file.pth")
    smaller = {"factorized": "factorize", "search": "search_architecture"}
    stage = next((stage for word, stage in smaller.items() if word in recipe), "prune")
    exits = [name for name in ("early_exit", "dynamic_width") if name in recipe]
    assert config.stages == (["teacher", *exits, "quantize"] if exits else ["teacher", stage, "distill", "quantize"])
    assert config.quantize.mode == ("ptq" if recipe in CALIBRATED else "qat")


def test_the_ptq_recipe_differs_from_its_sibling_in_the_mode_alone() -> None:
    qat, ptq = composed("recipe=mobilenet_int8"), composed("recipe=mobilenet_int8_ptq", "quantize.mode=qat")
    assert qat == ptq


def test_a_recipe_beats_the_defaults_and_the_command_line_beats_the_recipe() -> None:
    assert Config().prune.round_to == 8
    assert composed("recipe=resnet56_cifar_int8", "teacher.checkpoint=x").prune.round_to == 1
    assert composed("recipe=resnet56_cifar_int8", "teacher.checkpoint=x", "prune.round_to=4").prune.round_to == 4


def test_data_groups_bring_their_own_settings() -> None:
    config = composed("recipe=mobilenet_int8", "data=cifar10")
    assert (config.data.name, config.data.flip, config.data.crop_padding) == ("cifar10", True, 4)


def test_the_help_page_names_every_recipe_and_every_key() -> None:
    page = help_page()
    for name in RECIPE_NAMES:
        assert f"\n    {name} " in page
    for key, _, text in describe(Config()):
        assert f"\n    {key}=" in page
        assert text


@pytest.mark.parametrize(
    "word", ["data.augment=light", "data.erasing=0.1", "data.sampler=balanced", "train.class_weights=balanced"]
)
def test_boxes_refuse_what_would_not_move_or_balance_them(word: str) -> None:
    with pytest.raises(UserError, match=r"with data\.task=detection"):
        composed("recipe=ssdlite_voc_int8", word)
