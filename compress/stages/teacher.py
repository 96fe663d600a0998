"""The network to compress: trained from scratch, fine-tuned from pretrained weights, or loaded as it is."""

import logging
from dataclasses import asdict

import torch
from torch import nn

from compress.config.schema import TeacherConfig
from compress.methods.distillation.losses import label_loss
from compress.models import Architecture, build, is_library, stem_for
from compress.models.artifact import Artifact, Spec
from compress.models.weights import load_checkpoint
from compress.training.context import Context
from compress.training.fine_tuning import freeze_backbone, layerwise_lr_scales
from compress.training.loop import TrainSettings, train
from compress.utils.errors import UserError

log = logging.getLogger("compress")


def teacher(artifact: None, config: TeacherConfig, context: Context) -> Artifact:
    """Builds `config.model` for the data's classes and channels and trains it with cross-entropy."""
    data = context.data
    network, architecture, remarks = initial(config, data.shape, len(data.classes))
    notes = {"frozen_parameters": frozen} if (frozen := _frozen(network)) else {}
    if remarks:
        notes["checkpoint"] = remarks
        log.info("%s", "\n".join(remarks))
    loss = label_loss(context.train.label_smoothing, context.task)
    if config.freeze_epochs and context.ranks.world > 1:
        raise UserError(
            f"teacher.freeze_epochs={config.freeze_epochs} with {context.ranks.world} processes",
            "0: they exchange the gradients of all layers in every epoch",
            "set teacher.freeze_epochs=0, or train in one process",
        )
    image = torch.zeros(1, *data.shape)
    before_epoch = freeze_backbone(network, image, config.freeze_epochs) if config.freeze_epochs else lambda epoch: None
    shares = layerwise_lr_scales(network, image, config.lr_decay) if config.lr_decay < 1 else {}
    settings = TrainSettings("teacher", config.epochs, config.lr, before_epoch, shares)
    history = train(network, loss, context, settings)
    spec = Spec(
        architecture=asdict(architecture),
        classes=data.classes,
        input={
            "shape": list(data.shape),
            "range": [0, 1],
            "mean": data.mean,
            "std": data.std,
            "layout": "NCHW",
            "crop_share": data.crop_share,
            "interpolation": data.interpolation,
        },
        task=data.task,
    )
    return Artifact(network, spec, notes=notes | {"history": history})


def untrained(config: TeacherConfig, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, Architecture]:
    """The network before its first epoch, for images (C, H, W), and what builds it again."""
    network, architecture, _ = initial(config, shape, classes)
    return network, architecture


def initial(
    config: TeacherConfig, shape: tuple[int, int, int], classes: int
) -> tuple[nn.Module, Architecture, list[str]]:
    """As `untrained`, with what is to be said of the checkpoint.

    Raises UserError for a checkpoint that does not fit, and for epochs where all parameters are frozen.
    """
    stem, model = stem_for(config.stem, shape[1]), config.factory or config.model
    if config.stem == "small" and is_library(model):
        raise UserError(
            f"teacher.stem=small with teacher.model={model}",
            "auto or imagenet: networks of a library are built as they were published",
            "leave teacher.stem out, or name a network of python -m compress.models",
        )
    architecture = Architecture(model, stem, shape[0], classes, shape[1])
    network = build(architecture, config.weights)
    remarks = load_checkpoint(network, config.checkpoint, config.checkpoint_key) if config.checkpoint else []
    if config.epochs and not any(value.requires_grad for value in network.parameters()):
        raise UserError(
            f"teacher.epochs={config.epochs} and {architecture.model}, whose parameters are all frozen (requires_grad="
            "False)",
            "parameters to train, or a teacher that is taken as it is",
            "set teacher.epochs=0, or requires_grad_(True) on what is to be trained",
        )
    return network, architecture, remarks


def _frozen(network: nn.Module) -> list[str]:
    """The names of the parameters that this stage does not train; the log has their number."""
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    if frozen:
        count = sum(1 for _ in network.parameters())
        log.info(
            "teacher: %d of %d parameters are frozen (requires_grad=False) and keep their values in this stage; "
            "the stages behind it train all of them",
            len(frozen),
            count,
        )
    return frozen
