"""How `distill.losses` is read, and which losses a task refuses."""

from dataclasses import replace

import pytest

from compress.config.data_settings import DataConfig
from compress.config.distill_losses import check_task, feature_losses, logit_losses, parse_losses
from compress.config.schema import Config, TrainConfig
from compress.config.stage_settings import DistillConfig, TeacherConfig
from compress.config.validation import check
from compress.methods.distillation.feature_losses import FEATURE_LOSSES
from compress.methods.distillation.logit_losses import LOGIT_LOSSES
from compress.stages.ablations import ABLATIONS
from compress.utils.errors import UserError


def test_names_and_weights_are_read() -> None:
    texts = ["kd", "at=1000", "dkd=0"]
    assert parse_losses(texts) == {"kd": None, "at": 1000.0, "dkd": 0.0}
    assert logit_losses(texts) == {"kd": None, "dkd": 0.0}
    assert feature_losses(texts, []) == {"at": 1000.0}


def test_layers_alone_mean_fitnet() -> None:
    assert feature_losses(["kd"], ["layer1"]) == {"fitnet": None}
    assert feature_losses(["kd"], []) == {}
    assert feature_losses(["at"], ["layer1"]) == {"at": None}


def test_the_names_are_those_of_the_losses() -> None:
    assert parse_losses([*LOGIT_LOSSES, *FEATURE_LOSSES]).keys() == LOGIT_LOSSES.keys() | FEATURE_LOSSES.keys()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["kdd"], r"distill\.losses with kdd; .* did you mean kd\?"),
        (["kd", "kd=2"], "each loss once"),
        (["at=much"], "a weight of 0 or more"),
        (["at=-1"], "a weight of 0 or more"),
        (["at=nan"], "a weight of 0 or more"),
        (["at="], "a weight of 0 or more"),
        (["at"], r"distill\.losses=\[at\] with distill\.alpha=0\.9; expected a loss of the outputs"),
    ],
)
def test_what_cannot_be_read_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(Config(distill=DistillConfig(losses=texts)))


@pytest.mark.parametrize("task", ["multilabel", "detection"])
@pytest.mark.parametrize("name", ["kd_standardized", "dkd", "dist", "mlkd"])
def test_losses_of_one_class_an_image_are_refused_for_other_tasks(task: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} for data\.task={task}: it compares a distribution over classes"):
        check(Config(data=DataConfig(task=task), distill=DistillConfig(losses=["kd", name])))


def test_other_losses_are_taken() -> None:
    check_task(["kd", "at", "fitnet", "review"], "detection")
    check_task(["kd", "at", "rkd", "fitnet", "review"], "multilabel")
    with pytest.raises(UserError, match=r"rkd for data\.task=detection: it compares whole images"):
        check_task(["rkd"], "detection")


def test_mixing_needs_targets_that_can_be_mixed_and_a_training_that_does_it() -> None:
    mixed = TrainConfig(mixup=0.2)
    check(Config(train=mixed))
    with pytest.raises(UserError, match=r"train\.mixup=0\.2 with data\.task=detection; expected 0: boxes"):
        check(Config(train=mixed, data=DataConfig(task="detection")))
    check(Config(train=mixed, stages=["teacher", "quantize"]))
    taken = TeacherConfig(epochs=0, checkpoint="FILE")
    check(Config(train=mixed, teacher=taken))
    with pytest.raises(
        UserError, match=r"stages=\[teacher,quantize\] and teacher\.epochs=0; expected a stage that mixes"
    ):
        check(Config(train=mixed, stages=["teacher", "quantize"], teacher=taken))


def test_a_control_without_distillation_has_no_loss_or_teacher_of_it() -> None:
    given = DistillConfig(losses=["kd", "at"], hint_layers=["layer1"], teachers=["teacher"], rounds=3, epochs=4)
    changed = ABLATIONS["finetuned_without_distillation"].change(Config(distill=given)).distill
    assert changed == replace(given, losses=["kd"], alpha=0.0, hint_layers=[], teachers=[], rounds=1, epochs=12)
    assert not ABLATIONS["finetuned_without_distillation"].unfit(
        Config(stages=["teacher", "distill"], distill=DistillConfig(alpha=0.0, losses=["kd", "at"]))
    )


def test_a_teacher_that_is_not_there_is_refused_before_anything_trains() -> None:
    check(Config(distill=DistillConfig(teachers=["teacher"])))
    with pytest.raises(UserError, match=r"distill\.teachers with nowhere, which does not exist"):
        check(Config(distill=DistillConfig(teachers=["teacher", "nowhere"])))
