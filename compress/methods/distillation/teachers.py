"""Loads the teachers of a student, checks that they fit it, and averages their outputs."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.config.stage_settings import DistillConfig
from compress.methods.distillation.teacher_files import TeacherFiles, find_teacher
from compress.methods.distillation.teacher_logits import require_teacher
from compress.methods.restore import restore
from compress.models import Architecture, build
from compress.models.artifact import Artifact, Spec
from compress.models.graph.fold_batch_norm import fold_batch_norm
from compress.models.weights import load_checkpoint
from compress.training.context import Context
from compress.training.validation import split_logits
from compress.utils.errors import UserError

_NORMALISATION = 0.01  # of pixels in [0, 1]: means over the train images of another seed differ by less


class AveragedTeachers(nn.Module):
    """Several teachers as one network: images (N, C, H, W) -> the weighted mean of their outputs (N, ...)."""

    def __init__(self, members: list[nn.Module], weights: list[float]) -> None:
        """`weights` add up to 1."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        outputs = [member(images).float() for member in self.members]
        return torch.stack([weight * one for weight, one in zip(self.weights, outputs, strict=True)]).sum(0)


@dataclass(frozen=True)
class Teachers:
    """The network that teaches, and a row for each teacher, for stage.json."""

    network: nn.Module
    rows: list[dict[str, Any]]


def load_teachers(config: DistillConfig, context: Context) -> Teachers:
    """Returns the run's own teacher, or the mean of those that `config.teachers` names.

    Raises UserError, which names the teacher, for one that cannot be found and for one with other classes, images or
    outputs than this run's.
    """
    if not config.teachers:
        return Teachers(require_teacher(context), [])
    networks = [_load(find_teacher(name), context) for name in config.teachers]
    task, val = context.task, context.data.val
    scores = [task.score(split_logits(network, val, context.device), val.labels) for network in networks]
    weights = teacher_weights(scores if config.teacher_weights == "accuracy" else [1.0] * len(scores))
    rows = [
        {"teacher": name, f"val_{task.metric.key}_percent": score, "weight": weight}
        for name, score, weight in zip(config.teachers, scores, weights, strict=True)
    ]
    network = networks[0] if len(networks) == 1 else AveragedTeachers(networks, weights).eval()
    return Teachers(network, rows)


def teacher_weights(scores: list[float]) -> list[float]:
    """Returns weights in proportion to the scores, which add up to 1; equal ones where all scores are 0."""
    total = sum(scores)
    return [score / total if total else 1 / len(scores) for score in scores]


def first_teacher(network: nn.Module) -> nn.Module:
    """Returns the teacher whose layers are compared with the student's: the first of several."""
    return network.members[0] if isinstance(network, AveragedTeachers) else network


def fold_teachers(network: nn.Module) -> nn.Module:
    """Returns a copy with batch norm folded into the convolutions of each teacher."""
    if not isinstance(network, AveragedTeachers):
        return fold_batch_norm(network)
    return AveragedTeachers([fold_batch_norm(member) for member in network.members], network.weights).eval()


def _load(files: TeacherFiles, context: Context) -> nn.Module:
    own = require_teacher(context)
    if files.folder is not None:
        artifact = restore(files.folder, context.device)
        _check_spec(artifact.spec, files.name, context)
    elif files.checkpoint is not None:
        artifact = _from_checkpoint(files, context)
    else:
        return own
    network = artifact.network.eval()
    image = torch.zeros(1, *context.data.shape, device=context.device)
    with torch.no_grad():
        shape, wanted = tuple(network(image).shape), tuple(own(image).shape)
    if shape != wanted:
        raise UserError(
            f"distill.teachers with {files.name}, whose outputs are {shape}, the run's teacher's {wanted}",
            "outputs of one shape, which can be averaged",
            "leave it out",
        )
    return network


def _from_checkpoint(files: TeacherFiles, context: Context) -> Artifact:
    """Loads a checkpoint into the architecture of the run's teacher."""
    if context.teacher is None:
        raise ValueError("received a context without a teacher; expected the one whose architecture a file fits")
    spec = context.teacher.spec
    network = build(Architecture(**spec.architecture))
    load_checkpoint(network, str(files.checkpoint))
    return Artifact(network.to(context.device, memory_format=torch.channels_last), spec)


def _check_spec(spec: Spec, name: str, context: Context) -> None:
    """Raises UserError unless a teacher was made for the classes and the images of this run."""
    data = context.data
    given = spec.input
    faults = {
        "task": spec.task != data.task,
        "classes": spec.classes != data.classes,
        "images": list(given["shape"]) != list(data.shape),
        "normalisation": not (_close(given["mean"], data.mean) and _close(given["std"], data.std)),
    }
    if fault := next((what for what, differs in faults.items() if differs), None):
        found = [spec.task, spec.classes, given["shape"], [given["mean"], given["std"]]]
        wanted = [data.task, data.classes, list(data.shape), [data.mean, data.std]]
        at = list(faults).index(fault)
        raise UserError(
            f"distill.teachers with {name}, whose {fault} are {found[at]}",
            f"the {fault} of this run: {wanted[at]}",
            "set the keys of data as in that run, or leave that teacher out",
        )


def _close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and all(
        math.isclose(one, other, rel_tol=0, abs_tol=_NORMALISATION) for one, other in zip(found, wanted, strict=True)
    )
