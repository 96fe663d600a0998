"""The network to compress: trained from scratch, fine-tuned from pretrained weights, or loaded as it is."""

from dataclasses import asdict

import torch
from torch import nn

from compress.artifact import Artifact, Spec
from compress.config import TeacherConfig
from compress.context import Context
from compress.errors import UserError
from compress.losses import label_loss
from compress.models import Architecture, build, stem_for
from compress.models.checkpoint import load_checkpoint
from compress.train import TrainSettings, train
from compress.transfer import freezing, lr_shares


def teacher(artifact: None, config: TeacherConfig, context: Context) -> Artifact:
    """Builds `config.model` for the data's classes and channels and trains it with cross-entropy."""
    data = context.data
    network, architecture = untrained(config, data.shape, len(data.classes))
    loss = label_loss(context.train.label_smoothing)
    if config.freeze_epochs and context.ranks.world > 1:
        raise UserError(
            f"teacher.freeze_epochs={config.freeze_epochs} with {context.ranks.world} processes",
            "0: they exchange the gradients of all layers in every epoch",
            "set teacher.freeze_epochs=0, or train in one process",
        )
    image = torch.zeros(1, *data.shape)
    before_epoch = freezing(network, image, config.freeze_epochs) if config.freeze_epochs else lambda epoch: None
    shares = lr_shares(network, image, config.lr_decay) if config.lr_decay < 1 else {}
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
        },
    )
    return Artifact(network, spec, notes={"history": history})


def untrained(config: TeacherConfig, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, Architecture]:
    """The network before its first epoch, for images (C, H, W), and what builds it again."""
    architecture = Architecture(config.factory or config.model, stem_for(config.stem, shape[1]), shape[0], classes)
    network = build(architecture, config.weights)
    if config.checkpoint:
        load_checkpoint(network, config.checkpoint)
    return network, architecture
