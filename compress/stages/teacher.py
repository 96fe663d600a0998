"""The network to compress: trained from scratch, fine-tuned from pretrained weights, or loaded as it is."""

from dataclasses import asdict

from compress.artifact import Artifact, Spec
from compress.config import TeacherConfig
from compress.context import Context
from compress.losses import label_loss
from compress.models import Architecture, build, stem_for
from compress.models.checkpoint import load_checkpoint
from compress.train import train


def teacher(artifact: None, config: TeacherConfig, context: Context) -> Artifact:
    """Builds `config.model` for the data's classes and channels and trains it with cross-entropy."""
    data = context.data
    stem = stem_for(config.stem, data.shape[1])
    architecture = Architecture(config.model, stem, data.shape[0], len(data.classes))
    network = build(architecture, config.weights)
    if config.checkpoint:
        load_checkpoint(network, config.checkpoint)
    loss = label_loss(context.train.label_smoothing)
    history = train(network, loss, context, "teacher", config.epochs, config.lr)
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
