"""Builds the network that the settings of a teacher describe."""

from torch import nn

from compress.config.stage_settings import TeacherConfig
from compress.models import Architecture, build, is_library, stem_for
from compress.models.registry import SSDLITE, is_detector
from compress.models.weights import load_backbone, load_checkpoint
from compress.utils.errors import UserError


def teacher_from_config(
    config: TeacherConfig, shape: tuple[int, int, int], classes: int
) -> tuple[nn.Module, Architecture, list[str]]:
    """Builds the network for images (C, H, W) and loads its checkpoint, if it has one.

    Returns the network, the architecture that rebuilds it, and remarks on the checkpoint. Raises UserError for a
    checkpoint that does not fit, and for epochs where all parameters are frozen.
    """
    stem, model = stem_for(config.stem, shape[1]), config.factory or config.model
    if config.stem == "small" and is_library(model):
        raise UserError(
            f"teacher.stem=small with teacher.model={model}",
            "auto or imagenet: networks of a library are built as they were published",
            "leave teacher.stem out, or name a network of python -m compress.models",
        )
    anchors = (
        {"scales": list(config.anchor_scales), "ratios": list(config.anchor_ratios)} if is_detector(model) else None
    )
    architecture = Architecture(model, stem, shape[0], classes, shape[1], anchors)
    network = build(architecture, config.weights)
    remarks = _load_backbone(network, config, config.backbone_checkpoint) if config.backbone_checkpoint else []
    if config.checkpoint:
        remarks += load_checkpoint(network, config.checkpoint, config.checkpoint_key)
    if config.epochs and not any(value.requires_grad for value in network.parameters()):
        raise UserError(
            f"teacher.epochs={config.epochs} and {architecture.model}, whose parameters are all frozen (requires_grad="
            "False)",
            "parameters to train, or a teacher that is taken as it is",
            "set teacher.epochs=0, or requires_grad_(True) on what is to be trained",
        )
    return network, architecture, remarks


def anchors_for(model: str, config: TeacherConfig) -> dict[str, list[float]] | None:
    """Returns the anchors that the settings describe; None for a network that has none, or its own."""
    if not is_detector(model):
        return None
    return {"scales": list(config.anchor_scales), "ratios": list(config.anchor_ratios)}


def _load_backbone(network: nn.Module, config: TeacherConfig, path: str) -> list[str]:
    """Loads weights of a classifier, the file `path`, into the backbone of SSDlite; returns remarks."""
    if config.factory or not config.model.startswith(f"{SSDLITE}/"):
        raise UserError(
            f"teacher.backbone_checkpoint with {config.factory or config.model}",
            f"a detector whose backbone is a network of the registry: {SSDLITE}/NAME",
            "set teacher.checkpoint, or name such a detector",
        )
    return load_backbone(network.get_submodule("backbone.features"), path, config.checkpoint_key)
