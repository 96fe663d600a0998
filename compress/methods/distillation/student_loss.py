"""The loss of the stage distill: labels, losses of the outputs, and losses of layers."""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from compress.data.dataset import Batch
from compress.methods.distillation.feature_terms import FeatureTerms
from compress.methods.distillation.logit_losses import LOGIT_LOSSES
from compress.methods.distillation.losses import MixedBatch, TeacherFn, compared_with_teacher, softened
from compress.methods.distillation.mixing import Mixing
from compress.tasks import CLASSIFICATION, Task
from compress.training.step import LossFn

_WEIGH_ALPHA = ("kd", "mlkd")  # published with a weight beside 1 minus it of the labels, which is `alpha` here


def default_weight(name: str) -> float:
    """Returns the weight of a loss of the outputs where the settings give none, the published one."""
    return 1.0 if name in _WEIGH_ALPHA else LOGIT_LOSSES[name].weight


@dataclass(frozen=True)
class LogitTerms:
    """The losses of the outputs, which weigh `alpha` together; the labels weigh 1 - alpha."""

    alpha: float
    temperature: float
    weights: dict[str, float] = field(default_factory=lambda: {"kd": 1.0})  # by the name of the loss


def student_loss(
    teacher_fn: TeacherFn,
    logit_terms: LogitTerms,
    feature_terms: FeatureTerms | None = None,
    mixing: Mixing | None = None,
    task: Task = CLASSIFICATION,
) -> LossFn:
    """Returns the loss of a student that learns from a teacher's logits (N, K), which `teacher_fn` computes.

    It is (1 - alpha) times the loss of the labels, plus alpha times the weighted losses of the outputs, plus the
    weighted losses of layers.
    """
    features, mix = feature_terms or FeatureTerms(), mixing or Mixing()

    def start(examples: Batch) -> MixedBatch:
        features.clear()
        return mix(examples)

    def compare(logits: Tensor, teacher_logits: Tensor, mixed: MixedBatch) -> Tensor:
        value = _outputs_loss(logits, teacher_logits, mixed, logit_terms, task)
        for term in features.values():
            value = value + term
        return value

    return compared_with_teacher(teacher_fn, compare, task, start)


def _outputs_loss(logits: Tensor, teacher_logits: Tensor, mixed: MixedBatch, terms: LogitTerms, task: Task) -> Tensor:
    """Returns the loss of labels and of all outputs (N, K), a scalar."""
    alpha, temperature = terms.alpha, terms.temperature
    value = (1 - alpha) * mixed.over_labels(lambda labels: task.loss(logits, labels))
    for name, weight in terms.weights.items():
        if name == "kd":  # the task's own distance, so that it fits labels and boxes, too
            value = value + softened(logits, teacher_logits, temperature, alpha * weight, task)
        else:
            compare = partial(_named, name, logits, teacher_logits, temperature)
            soft = mixed.over_labels(compare)
            value = value + alpha * weight * soft
    return value


def _named(name: str, logits: Tensor, teacher_logits: Tensor, temperature: float, labels: Tensor) -> Tensor:
    return LOGIT_LOSSES[name].loss(logits, teacher_logits, labels, temperature)
