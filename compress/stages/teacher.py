"""Makes the network to compress: trains it from scratch, fine-tunes pretrained weights, or loads it."""

import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from compress.config.stage_settings import TeacherConfig
from compress.methods.distillation.losses import label_loss
from compress.methods.distillation.mixing import Mixing
from compress.models.artifact import Artifact, Spec
from compress.models.from_config import teacher_from_config
from compress.models.identity_norms import identity_norms, set_statistics
from compress.training.context import Context
from compress.training.fine_tuning import freeze_backbone, layerwise_lr_scales
from compress.training.loop import TrainSettings, train
from compress.utils.errors import UserError

_STATISTICS_IMAGES = 128

log = logging.getLogger("compress")


def teacher(artifact: None, config: TeacherConfig, context: Context) -> Artifact:
    """Builds `config.model` for the data's classes and channels, and trains it on the task's loss."""
    data = context.data
    network, architecture, remarks = teacher_from_config(config, data.shape, len(data.classes))
    notes: dict[str, Any] = {"frozen_parameters": frozen} if (frozen := _frozen(network)) else {}
    if remarks:
        notes["checkpoint"] = remarks
        log.info("%s", "\n".join(remarks))
    if config.epochs and (norms := identity_norms(network)):
        images = torch.cat([images for images, _ in data.train.take(_STATISTICS_IMAGES, context.seed).batches()])
        set_statistics(network, norms, images)
        log.info("teacher: batch norm is folded into the weights; %d norms get statistics again", len(norms))
        notes["batch_norm"] = f"folded into the weights; {len(norms)} norms got statistics of train images again"
    loss = label_loss(context.train.label_smoothing, context.task, Mixing.of(context.train))
    if config.freeze_epochs and context.ranks.world > 1:
        raise UserError(
            f"teacher.freeze_epochs={config.freeze_epochs} with {context.ranks.world} processes",
            "0: they exchange the gradients of all layers in every epoch",
            "set teacher.freeze_epochs=0, or train in one process",
        )
    image = torch.zeros(1, *data.shape)
    before_epoch = freeze_backbone(network, image, config.freeze_epochs) if config.freeze_epochs else lambda epoch: None
    shares = layerwise_lr_scales(network, image, config.lr_decay) if config.lr_decay < 1 else {}
    settings = TrainSettings("teacher", config.epochs, config.lr, before_epoch, shares, schedule=config.schedule)
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
            "resize": data.resize,
        },
        task=data.task,
    )
    return Artifact(network, spec, notes=notes | {"history": history})


def _frozen(network: nn.Module) -> list[str]:
    """Returns the names of the parameters that this stage does not train, and logs their number."""
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    if frozen:
        count = sum(1 for _ in network.parameters())
        log.info(
            "teacher: %d of %d parameters are frozen (requires_grad=False) and keep their values in this stage; "
            "the later stages train all of them",
            len(frozen),
            count,
        )
    return frozen
