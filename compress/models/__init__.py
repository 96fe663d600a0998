"""The zoo: a name -> a network, for the classes, the channels and the size of image asked for."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torchvision
from torch import nn

from compress.errors import UserError
from compress.models import stems
from compress.models.cifar_resnet import CifarResNet
from compress.models.own import OWN


@dataclass
class Entry:
    """How a network is made: torchvision's builder with its stem for small images, or one of the project's own."""

    paper: str
    torchvision: str | None = None
    small_stem: Callable[[nn.Module], None] | None = None
    depth: int | None = None  # of a CIFAR ResNet


ZOO = {
    "mobilenet_v2": Entry("Sandler et al. 2018", torchvision="mobilenet_v2", small_stem=stems.small_mobilenet_v2),
    "mobilenet_v3_small": Entry(
        "Howard et al. 2019", torchvision="mobilenet_v3_small", small_stem=stems.small_mobilenet_v3
    ),
    "resnet18": Entry("He et al. 2015", torchvision="resnet18", small_stem=stems.small_resnet),
    "resnet20": Entry("He et al. 2015, section 4.2", depth=20),
    "resnet56": Entry("He et al. 2015, section 4.2", depth=56),
}


@dataclass
class Architecture:
    """What `build` needs to make the same network again; a part of model.json."""

    model: str
    stem: str
    in_channels: int
    classes: int


def check_model(name: str, key: str) -> None:
    """Raises UserError where neither the zoo nor the user has a network of that name."""
    if name not in ZOO and name not in OWN:
        raise UserError(f"{key}={name}", f"one of {', '.join(ZOO)}", "name one of these")


def build(architecture: Architecture, weights: str | None = None) -> nn.Module:
    """A network with fresh weights, or with torchvision's pretrained ones (the classifier fresh where classes differ).

    A network of the user's own comes with the weights that it was given with. Raises UserError for an unknown model or
    unknown weights.
    """
    check_model(architecture.model, "model")
    if architecture.model in OWN:
        return copy.deepcopy(OWN[architecture.model])
    entry = ZOO[architecture.model]
    if entry.depth is not None:
        if weights:
            raise UserError(f"teacher.weights={weights}", f"null for {architecture.model}", "use teacher.checkpoint")
        return CifarResNet(entry.depth, architecture.in_channels, architecture.classes)
    network = _from_torchvision(entry.torchvision, architecture.classes, weights)
    if architecture.stem == "small":
        entry.small_stem(network)
    stems.set_input_channels(network, architecture.in_channels)
    return network


def _from_torchvision(name: str, classes: int, weights: str | None) -> nn.Module:
    if not weights:
        return torchvision.models.get_model(name, weights=None, num_classes=classes)
    known = [member.name for member in torchvision.models.get_model_weights(name)]
    if weights not in known:
        raise UserError(f"teacher.weights={weights}", f"one of {', '.join(known)}", f"name one of these for {name}")
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise UserError(
            f"teacher.weights={weights}: {error}", "a network to fetch them from", "give the file as teacher.checkpoint"
        ) from error
    head, leaf = (network, "fc") if hasattr(network, "fc") else (network.classifier, str(len(network.classifier) - 1))
    old = getattr(head, leaf)
    if old.out_features != classes:
        setattr(head, leaf, nn.Linear(old.in_features, classes))
    return network
