"""Teaches a student what the teacher knows: the network of the stage before, or a new one from the zoo."""

from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from compress.config.schema import DistillConfig
from compress.methods.distillation.losses import record_outputs, teacher_loss
from compress.methods.distillation.teacher_logits import answers, compute_logits, require_teacher
from compress.models import Architecture, build
from compress.models.artifact import Artifact
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.utils.errors import UserError


def distill(artifact: Artifact, config: DistillConfig, context: Context) -> Artifact:
    """Trains the student on Hinton's loss, and on hints where asked; the teacher only looks on."""
    network, spec = artifact.network, artifact.spec
    if config.student:
        architecture = replace(Architecture(**spec.architecture), model=config.student)
        network = build(architecture)
        spec = replace(spec, architecture=asdict(architecture), changes=[])
    network.to(context.device)
    layers, teacher = config.hint_layers, require_teacher(context)
    with record_outputs(network, layers) as own, record_outputs(teacher, layers) as wanted:
        _check_hints(network, teacher, own, wanted, context)
        answer = compute_logits(teacher) if layers else answers(context)
        loss = teacher_loss(answer, config.temperature, config.alpha, (own, wanted), config.hint_weight, context.task)
        judge = teacher if layers or config.alpha else None  # a student of the labels alone may well leave the teacher
        history = train(network, loss, context, TrainSettings("distill", config.epochs, config.lr, teacher=judge))
    return Artifact(network, spec, notes={"history": history})


def _check_hints(
    network: nn.Module, teacher: nn.Module, own: dict[str, Tensor], wanted: dict[str, Tensor], context: Context
) -> None:
    """Raises UserError unless student and teacher give tensors of one shape at every hint layer."""
    image = torch.zeros(1, *context.data.shape, device=context.device)
    with torch.no_grad():
        network.eval()(image), teacher(image)
    for layer in own:
        mine, theirs = tuple(own[layer].shape), tuple(wanted[layer].shape)
        if mine != theirs:
            raise UserError(
                f"distill.hint_layers with {layer}: {mine} in the student, {theirs} in the teacher",
                "layers whose outputs kept the teacher's shape",
                "name others, or set distill.hint_layers=[]",
            )
