"""Builds a network by its name, for a number of classes, channels and pixels."""

import copy
import difflib
from dataclasses import dataclass, replace

import torch
from torch import nn

from compress.models.initialization import initialize
from compress.models.registry import LIBRARIES, SSDLITE, SSDLITE320, ZOO, Entry, backbone_name, find_entry, is_detector
from compress.models.stems import set_input_channels
from compress.models.third_party import (
    build_error,
    check_library_name,
    from_timm,
    from_torchvision,
    require_logits,
    require_timm,
)
from compress.models.user_model import USER_MODELS
from compress.utils.errors import UserError

__all__ = ["ZOO", "Architecture", "Entry", "build", "check_model", "is_library", "require_model_fits", "stem_for"]

_SMALL_PIXELS = 64  # at 64 the published strides end at 2x2
# The least share of the newest batch in batch norm's statistics: torch's default. MobileNetV3 has 0.01 and MNASNet
# 0.0003, for days of training: after 12 epochs of digits MobileNetV3 had 99 % on train and 10 % on validation, because
# its statistics were still far from those of the data; with 0.1 it has 97 %.
_LEAST_MOMENTUM = 0.1


@dataclass
class Architecture:
    """What `build` needs to rebuild the same network; a part of model.json."""

    model: str
    stem: str  # small or imagenet
    in_channels: int
    classes: int
    image_size: int | None = None  # pixels a side; None in files of versions that did not record it
    anchors: dict[str, list[float]] | None = None  # a detector's: scales, as shares of a side, and aspect ratios


def check_model(name: str, key: str) -> None:
    """Raises UserError where no registry, library or user has that name, or where its package is missing."""
    if name in USER_MODELS or name == SSDLITE320:
        return
    if is_detector(name):
        check_model(backbone_name(name), key)
        return
    if is_library(name):
        check_library_name(name, key)
        return
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, 3)
        hint = f"{' or '.join(near)} is near; " if near else ""
        raise UserError(
            f"{key}={name}",
            f"one of {', '.join(ZOO)}, or torchvision/NAME or timm/NAME; for boxes {SSDLITE}/NAME or {SSDLITE320}",
            f"{hint}name one of these; python -m compress.models lists them",
        )
    if ZOO[name].timm:
        require_timm(f"{key}={name}")


def is_library(name: str) -> bool:
    """Whether `name` is torchvision/NAME or timm/NAME: built as it was published, and not tested here."""
    return name not in USER_MODELS and name.partition("/")[0] in LIBRARIES and "/" in name


def require_model_fits(
    name: str, key: str, shape: tuple[int, int, int], classes: int, size_key: str = "data.image_size"
) -> None:
    """Raises UserError where a library's network cannot be built for images (C, H, W), or does not accept them.

    The registry's own networks accept any size. The network is built without values, on the meta device, where that
    is possible. `key` and `size_key` are the settings that name the network and the side of its images.
    """
    check_model(name, key)
    if not is_library(name):
        return
    architecture = Architecture(name, "imagenet", shape[0], classes, shape[1])
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                require_logits(build(architecture), name, key, shape, classes, size_key)
            return
        except UserError:
            if device == "cpu":
                raise
        except Exception as error:  # whatever a library raises, on the meta device also because values are missing
            if device == "cpu":
                raise build_error(name, key, shape[1], error, size_key) from error


def stem_for(stem: str, pixels: int) -> str:
    """Returns `stem`, and for "auto" the stem for images of `pixels` a side."""
    return stem if stem != "auto" else "small" if pixels <= _SMALL_PIXELS else "imagenet"


def build(architecture: Architecture, weights: str | None = None) -> nn.Module:
    """Builds a network with new weights, or with its library's pretrained ones.

    The classifier is new where the number of classes differs; a detector has pretrained weights in its backbone only.
    A network of the user's own keeps its weights. Raises UserError for an unknown model or unknown weights, and for
    weights of a network that has none.
    """
    check_model(architecture.model, "model")
    if architecture.model in USER_MODELS:
        return copy.deepcopy(USER_MODELS[architecture.model])
    if is_detector(architecture.model):
        network = _build_detector(architecture, weights)
        _raise_momentum(network)
        return network
    entry, classes = find_entry(architecture.model), architecture.classes
    size = architecture.image_size if is_library(architecture.model) else None
    if entry.own:
        if weights:
            raise UserError(f"teacher.weights={weights}", f"null for {architecture.model}", "use teacher.checkpoint")
        network = entry.own(architecture.in_channels, classes)
    elif entry.timm:
        channels = architecture.in_channels if is_library(architecture.model) else 3
        network = from_timm(entry.timm, classes, weights, channels, size)
    elif entry.torchvision:
        network = from_torchvision(entry.torchvision, classes, weights, size)
    else:
        raise ValueError(f"received the entry {architecture.model}; expected one with own, timm or torchvision")
    if not weights:
        initialize(network)
    if architecture.stem == "small" and entry.small:
        entry.small(network)
    if not (entry.timm and is_library(architecture.model)):  # timm has set them
        set_input_channels(network, architecture.in_channels)
    _raise_momentum(network)
    return network


def _build_detector(architecture: Architecture, weights: str | None) -> nn.Module:
    from compress.models.ssd import ssdlite, ssdlite320  # torchvision's detectors take a second

    if architecture.image_size is None or architecture.anchors is None:
        raise ValueError(f"received {architecture}; expected a detector's image_size and anchors")
    name, anchors = architecture.model, architecture.anchors
    shape = (architecture.in_channels, architecture.image_size, architecture.image_size)
    if name == SSDLITE320:
        return ssdlite320(shape, architecture.classes, anchors, weights)
    classifier = build(replace(architecture, model=backbone_name(name), anchors=None), weights)
    return ssdlite(classifier.eval(), name, shape, architecture.classes, anchors)


def _raise_momentum(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, _LEAST_MOMENTUM)
