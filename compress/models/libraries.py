"""Networks that torchvision and timm define, with fresh weights or with those that the two publish."""

from collections import OrderedDict
from importlib.util import find_spec

from torch import nn

from compress.errors import UserError
from compress.models.first_weights import logits_layer


def from_torchvision(name: str, classes: int, weights: str | None) -> nn.Module:
    """`weights` is a name in torchvision's enum, e.g. IMAGENET1K_V1; the classifier is fresh where classes differ.

    Raises UserError for unknown weights, and where they cannot be fetched.
    """
    import torchvision  # seconds, and not all networks are of it

    if not weights:
        return _loadable(torchvision.models.get_model(name, weights=None, num_classes=classes))
    _check_weights(weights, [member.name for member in torchvision.models.get_model_weights(name)], name)
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise _not_fetched(weights, error) from error
    _set_classes(network, classes)
    return _loadable(network)


def from_timm(name: str, classes: int, weights: str | None) -> nn.Module:
    """As `from_torchvision`; `weights` is what timm writes behind the dot of a pretrained network, e.g. cvnets_in1k."""
    require_timm(name)
    import timm  # an extra, and a second to import

    if not weights:
        return timm.create_model(name, num_classes=classes)
    known = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
    _check_weights(weights, known, name)
    try:
        return timm.create_model(f"{name}.{weights}", pretrained=True, num_classes=classes)
    except (OSError, RuntimeError) as error:  # huggingface_hub's own errors are among them
        raise _not_fetched(weights, error) from error


def require_timm(name: str) -> None:
    """Raises UserError where timm is not installed."""
    if find_spec("timm") is None:
        raise UserError(f"{name} without the package timm", "the extra timm installed", 'pip install "compress[timm]"')


def _check_weights(weights: str, known: list[str], name: str) -> None:
    if weights not in known:
        raise UserError(f"teacher.weights={weights}", f"one of {', '.join(known)}", f"name one of these for {name}")


def _not_fetched(weights: str, error: Exception) -> UserError:
    return UserError(
        f"teacher.weights={weights}: {error}", "a network to fetch them from", "give the file as teacher.checkpoint"
    )


def _loadable(network: nn.Module) -> nn.Module:
    """The same network; MNASNet without its class, which refuses tensors that come without a version number."""
    if type(network).__name__ != "MNASNet":
        return network
    parts = {"layers": network.layers, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, classifier=network.classifier))


def _set_classes(network: nn.Module, classes: int) -> None:
    """Replaces the last layer, linear or a 1x1 convolution, by a fresh one where it gives another number of logits."""
    name, last = logits_layer(network)
    if isinstance(last, nn.Linear) and last.out_features != classes:
        network.set_submodule(name, nn.Linear(last.in_features, classes))
    elif isinstance(last, nn.Conv2d) and last.out_channels != classes:
        network.set_submodule(name, nn.Conv2d(last.in_channels, classes, last.kernel_size))
