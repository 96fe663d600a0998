"""Distills one teacher or several into a student: the network of the stage before, or a new one of the registry."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from torch import nn

from compress.config.distill_losses import feature_losses, logit_losses
from compress.config.stage_settings import DistillConfig
from compress.methods.distillation.feature_losses import FEATURE_LOSSES
from compress.methods.distillation.feature_terms import (
    FeatureTerms,
    WithLearnedParts,
    check_outputs,
    learned_parts,
)
from compress.methods.distillation.losses import record_outputs
from compress.methods.distillation.matching import match_by_resolution
from compress.methods.distillation.mixing import Mixing
from compress.methods.distillation.student_loss import LogitTerms, default_weight, student_loss
from compress.methods.distillation.teacher_logits import compute_logits, logits_function
from compress.methods.distillation.teachers import first_teacher, fold_teachers, load_teachers
from compress.models import Architecture, build, stem_for
from compress.models.artifact import Artifact, Spec
from compress.models.input_size import resize_input
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.utils.errors import UserError


def distill(artifact: Artifact, config: DistillConfig, context: Context) -> Artifact:
    """Trains the student on the losses of `config`, in as many rounds as asked.

    Each round starts from the network that came to the stage; from the second on, the network of the round before is
    the teacher (born-again networks, Furlanello et al. 2018, arXiv:1805.04770). Raises UserError where layers or
    outputs of student and teacher cannot be compared.
    """
    network, spec = _student(artifact, config, context)
    teachers = load_teachers(config, context)
    teacher = teachers.network
    if config.student:
        _check_outputs(network, teacher, config.student, context)
    history: list[dict[str, float]] = []
    for number in range(1, config.rounds + 1):
        student = network if number == config.rounds else copy.deepcopy(network)
        history += _train_round(student, teacher, config, context, number)
        teacher = student
    notes = {"teachers": teachers.rows} if teachers.rows else {}
    return Artifact(network, spec, notes=notes | {"history": history})


def _student(artifact: Artifact, config: DistillConfig, context: Context) -> tuple[nn.Module, Spec]:
    """Returns the network to train, with its description."""
    network, spec, side = artifact.network, artifact.spec, config.student_image_size
    if config.student:
        architecture = replace(Architecture(**spec.architecture), model=config.student)
        if side:
            architecture = replace(architecture, stem=stem_for("auto", side), image_size=side)
        network, spec = build(architecture), replace(spec, architecture=asdict(architecture), changes=[])
    network.to(context.device)
    if side:
        resize_input(network, torch.zeros(1, *context.data.shape, device=context.device), (side, side))
        spec = spec.changed("resize_input", size=[side, side])
    return network, spec


def _train_round(
    student: nn.Module, teacher: nn.Module, config: DistillConfig, context: Context, number: int
) -> list[dict[str, float]]:
    """Trains `student` in place; returns a row an epoch."""
    mixing = Mixing.of(context.train)
    with _compared_layers(student, first_teacher(teacher), config, context) as features:
        if features.weights:
            teacher_fn = compute_logits(teacher)  # with its hooks, at each call
        else:
            teacher_fn = logits_function(fold_teachers(teacher), context, mixing.changes)
        loss = student_loss(teacher_fn, _logit_terms(config), features, mixing, context.task)
        learns_from_teacher = bool(features.weights or config.alpha)  # labels alone may well lead away from it
        settings = TrainSettings(
            "distill",
            config.epochs,
            config.lr,
            teacher=teacher if learns_from_teacher else None,
            part=f"round {number} of {config.rounds}" if config.rounds > 1 else "",
            last=number == config.rounds,
            schedule=config.schedule,
        )
        parts = learned_parts(list(features.weights), check_outputs(features)) if features.weights else nn.ModuleDict()
        trained = WithLearnedParts(student, parts, features) if len(parts) else student
        return train(trained, loss, context, settings)


def _logit_terms(config: DistillConfig) -> LogitTerms:
    weights = {
        name: default_weight(name) if weight is None else weight for name, weight in logit_losses(config.losses).items()
    }
    return LogitTerms(config.alpha, config.temperature, weights)


@contextmanager
def _compared_layers(
    student: nn.Module, teacher: nn.Module, config: DistillConfig, context: Context
) -> Iterator[FeatureTerms]:
    """Yields the losses of layers, for which hooks record outputs; at first those of an example."""
    published = {name: loss.weight for name, loss in FEATURE_LOSSES.items()} | {"fitnet": config.hint_weight}
    named = feature_losses(config.losses, config.hint_layers)
    weights = {name: published[name] if weight is None else weight for name, weight in named.items()}
    image = torch.zeros(1, *context.data.shape, device=context.device)
    layers = {layer: layer for layer in config.hint_layers}
    if weights and not layers:
        layers = match_by_resolution(student, teacher, image)
    with (
        record_outputs(student, list(layers)) as own,
        record_outputs(teacher, list(layers.values())) as wanted,
    ):
        if layers:
            with torch.no_grad():
                student.eval()(image), teacher.eval()(image)
            order = [*own, *(layer for layer in layers if layer not in own)]  # in which the student computes them
            layers = {layer: layers[layer] for layer in order}
        yield FeatureTerms(weights, layers, own, wanted)


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
