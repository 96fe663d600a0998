"""The zoo: a name -> a network, for the classes, the channels and the size of image asked for."""

import copy
from dataclasses import dataclass

from torch import nn

from compress.errors import UserError
from compress.models.first_weights import settle
from compress.models.libraries import from_timm, from_torchvision, require_timm
from compress.models.own import OWN
from compress.models.stems import set_input_channels
from compress.models.zoo import ZOO, Entry

__all__ = ["ZOO", "Architecture", "Entry", "build", "check_model", "stem_for"]

_SMALL_PIXELS = 64  # at 64 the published strides leave 2x2
# Share of the newest batch in batch norm's statistics, at least: torch's default. MobileNetV3 has 0.01 and MNASNet
# 0.0003, for days of training: after 12 epochs of digits MobileNetV3 had 99 % on train and, by statistics that were
# still on their way, 10 % on validation; with 0.1 it has 97 %.
_MOMENTUM = 0.1


@dataclass
class Architecture:
    """What `build` needs to make the same network again; a part of model.json."""

    model: str
    stem: str  # small or imagenet
    in_channels: int
    classes: int


def check_model(name: str, key: str) -> None:
    """Raises UserError where neither the zoo nor the user has that name, or where the package behind it is missing."""
    if name in OWN:
        return
    if name not in ZOO:
        raise UserError(f"{key}={name}", f"one of {', '.join(ZOO)}", "name one of these")
    if ZOO[name].timm:
        require_timm(f"{key}={name}")


def stem_for(stem: str, pixels: int) -> str:
    """`teacher.stem` with "auto" resolved for images of `pixels` a side."""
    return stem if stem != "auto" else "small" if pixels <= _SMALL_PIXELS else "imagenet"


def build(architecture: Architecture, weights: str | None = None) -> nn.Module:
    """A network with fresh weights, or with its library's pretrained ones (the classifier fresh where classes differ).

    A network of the user's own comes with the weights that it was given with. Raises UserError for an unknown model or
    unknown weights, and for weights of a network that has none.
    """
    check_model(architecture.model, "model")
    if architecture.model in OWN:
        return copy.deepcopy(OWN[architecture.model])
    entry, classes = ZOO[architecture.model], architecture.classes
    if entry.own:
        if weights:
            raise UserError(f"teacher.weights={weights}", f"null for {architecture.model}", "use teacher.checkpoint")
        network = entry.own(architecture.in_channels, classes)
    elif entry.timm:
        network = from_timm(entry.timm, classes, weights)
    else:
        network = from_torchvision(entry.torchvision, classes, weights)
    if not weights:
        settle(network)
    if architecture.stem == "small" and entry.small:
        entry.small(network)
    set_input_channels(network, architecture.in_channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = max(module.momentum, _MOMENTUM)
    return network
