"""Distills the teacher into a student: the network of the stage before, or a new one of the registry."""

from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from compress.config.stage_settings import DistillConfig
from compress.methods.distillation.losses import record_outputs, teacher_loss
from compress.methods.distillation.teacher_logits import compute_logits, require_teacher, teacher_function
from compress.models import Architecture, build
from compress.models.artifact import Artifact
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.utils.errors import UserError


def distill(artifact: Artifact, config: DistillConfig, context: Context) -> Artifact:
    """Trains the student on Hinton's loss, and on hints where `config.hint_layers` names some."""
    network, spec = artifact.network, artifact.spec
    if config.student:
        architecture = replace(Architecture(**spec.architecture), model=config.student)
        network = build(architecture)
        spec = replace(spec, architecture=asdict(architecture), changes=[])
    network.to(context.device)
    layers, teacher = config.hint_layers, require_teacher(context)
    if config.student:
        _check_outputs(network, teacher, config.student, context)
    with record_outputs(network, layers) as student_features, record_outputs(teacher, layers) as teacher_features:
        hints = (student_features, teacher_features)
        _check_hints(network, teacher, hints, context)
        teacher_fn = compute_logits(teacher) if layers else teacher_function(context)
        loss = teacher_loss(teacher_fn, config.temperature, config.alpha, hints, config.hint_weight, context.task)
        learns_from_teacher = bool(layers or config.alpha)  # a student of the labels alone may well differ from it
        settings = TrainSettings(
            "distill",
            config.epochs,
            config.lr,
            teacher=teacher if learns_from_teacher else None,
            schedule=config.schedule,
        )
        history = train(network, loss, context, settings)
    return Artifact(network, spec, notes={"history": history})


def _check_outputs(network: nn.Module, teacher: nn.Module, name: str, context: Context) -> None:
    """Raises UserError unless student and teacher return outputs of one shape; detectors may have other anchors."""
    image = torch.zeros(1, *context.data.shape, device=context.device)
    with torch.no_grad():
        shapes = [tuple(one(image).shape) for one in (network.eval(), teacher)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"distill.student={name}, whose outputs are {shapes[0]}, the teacher's {shapes[1]}",
            "outputs of one shape: a detector has an anchor at each place of its feature maps",
            "name a student with the strides of the teacher",
        )


def _check_hints(
    network: nn.Module, teacher: nn.Module, hints: tuple[dict[str, Tensor], dict[str, Tensor]], context: Context
) -> None:
    """Raises UserError unless student and teacher return tensors of one shape at every hint layer."""
    student_features, teacher_features = hints
    image = torch.zeros(1, *context.data.shape, device=context.device)
    with torch.no_grad():
        network.eval()(image), teacher(image)
    for layer in student_features:
        student_shape, teacher_shape = tuple(student_features[layer].shape), tuple(teacher_features[layer].shape)
        if student_shape != teacher_shape:
            raise UserError(
                f"distill.hint_layers with {layer}: {student_shape} in the student, {teacher_shape} in the teacher",
                "layers whose outputs kept the teacher's shape",
                "name others, or set distill.hint_layers=[]",
            )
