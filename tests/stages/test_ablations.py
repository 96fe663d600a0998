"""The controls of runs that prune and factorize: their shape and their epochs, and where they would show nothing."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import Config
from compress.config.stage_settings import DistillConfig, FactorizeConfig, PruneConfig, PruneTargetConfig
from compress.models.artifact import Artifact
from compress.models.widths import read_widths
from compress.stages import load_stage
from compress.stages.ablations import ABLATIONS, budget_epochs
from compress.training.context import Context
from tests.stages.taught import taught

BOTH = ["teacher", "prune", "factorize", "distill", "quantize"]


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """A run that prunes, factorizes and distills, an epoch each."""
    teacher = replace(tiny_config.teacher, epochs=1)
    factorize = FactorizeConfig(round_to=2, ratio=0.4, reconstruction_samples=64, epochs=1, distill=True)
    quantize = replace(tiny_config.quantize, mode="ptq")
    return replace(tiny_config, stages=BOTH, teacher=teacher, factorize=factorize, quantize=quantize)


@pytest.fixture
def context(config: Config, tmp_path: Path) -> Iterator[Context]:
    yield from taught(config, tmp_path)


def made(config: Config, context: Context) -> Artifact:
    """What the stages between the teacher and int8 make; each is seeded as in a run."""
    artifact = copy.deepcopy(context.teacher)
    for name in config.stages[1:]:
        if name not in ("distill", "quantize"):
            torch.manual_seed(0)
            artifact = load_stage(name)(artifact, getattr(config, name), context)
    return artifact


@pytest.mark.parametrize("order", [["prune", "factorize"], ["factorize", "prune"]])
def test_new_weights_have_the_shape_of_the_run_and_all_its_epochs(
    config: Config, context: Context, order: list[str]
) -> None:
    config = replace(config, stages=["teacher", *order, "distill", "quantize"])
    scratch = ABLATIONS["dense_from_scratch"].change(config)
    assert scratch.stages == ["teacher", *order, "quantize"]
    assert getattr(scratch, order[0]) == getattr(config, order[0])
    own, new = made(config, context), made(scratch, context)
    assert read_widths(new.network) == read_widths(own.network)
    assert [change["method"] for change in new.spec.changes] == order
    assert len(new.notes["history"]) == budget_epochs(config) == 3
    assert not new.notes.get("unexplained_share")
    state, old = new.network.state_dict(), own.network.state_dict()
    weights = [name for name, value in state.items() if value.ndim > 1]
    assert all((state[name] - old[name]).abs().max() > 0.01 for name in weights)


def test_labels_alone_means_every_stage(config: Config) -> None:
    plain = ABLATIONS["finetuned_without_distillation"].change(config)
    assert not plain.factorize.distill
    assert replace(plain.factorize, distill=True) == config.factorize
    config.distill.alpha = 0.0
    assert not ABLATIONS["finetuned_without_distillation"].unfit(config)  # factorize learns from the teacher
    config.factorize.epochs = 0
    assert ABLATIONS["finetuned_without_distillation"].unfit(config) == "nothing is learned from the teacher"


def test_equal_ranks_have_the_same_share_of_the_macs(config: Config, context: Context) -> None:
    target = PruneTargetConfig(macs_share=0.7)
    config = replace(
        config, stages=["teacher", "factorize"], factorize=replace(config.factorize, target=target, epochs=0)
    )
    own, equal = made(config, context), made(ABLATIONS["equal_ranks"].change(config), context)
    shares = [artifact.notes["target"]["reached"]["macs_share"] for artifact in (own, equal)]
    assert all(0.6 < share <= 0.7 for share in shares)
    assert [row["ranks"] for row in own.notes["ranks"]] != [row["ranks"] for row in equal.notes["ranks"]]
    assert ["sensitivity" in artifact.notes for artifact in (own, equal)] == [True, False]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("equal_ranks", {"stages": ["teacher", "prune"]}, "nothing is factorized"),
        ("equal_ranks", {"factorize": FactorizeConfig(ratio=0.0)}, "nothing is factorized"),
        ("equal_ranks", {"factorize": FactorizeConfig(scope="local")}, "factorize.scope is local"),
        (
            "equal_ranks",
            {"factorize": FactorizeConfig(target=PruneTargetConfig(max_drop_points=1))},
            "factorize.target.max_drop_points would find a larger network for it",
        ),
        ("equal_ranks", {"distill": DistillConfig(student="resnet20")}, "distill.student takes the place"),
        ("random_pruned", {"stages": ["teacher", "factorize"]}, "nothing is pruned"),
        ("dense_from_scratch", {"stages": ["teacher", "distill"]}, "nothing is pruned or factorized"),
        ("dense_from_scratch", {"distill": DistillConfig(student_image_size=16)}, "without distill.student_image_size"),
        (
            "dense_from_scratch",
            {"stages": ["teacher", "factorize", "prune"], "prune": PruneConfig(scope="global", steps=2)},
            "prune.steps or prune.sparsity_epochs decide the shape",
        ),
    ],
)
def test_a_control_that_would_show_nothing_says_why(config: Config, name: str, changes: dict, reason: str) -> None:
    assert reason in ABLATIONS[name].unfit(replace(config, **changes))


def test_what_comes_before_the_smaller_shape_stays_in_all_controls(config: Config) -> None:
    """A student, its size and steps of pruning are then a part of what is made smaller."""
    config = replace(
        config,
        stages=["teacher", "distill", "prune", "factorize"],
        distill=DistillConfig(student="resnet20", student_image_size=16),
        prune=PruneConfig(scope="global", steps=2),
    )
    unfit = [name for name, ablation in ABLATIONS.items() if ablation.unfit(config)]
    assert unfit == ["uniform_architecture"]
    assert ABLATIONS["dense_from_scratch"].change(config).stages == config.stages
