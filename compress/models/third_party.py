"""Builds the networks of torchvision and timm, with new or with published weights."""

import difflib
import inspect
from collections import OrderedDict
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from compress.models.initialization import last_defined_layer
from compress.utils.errors import UserError

_MAX_NAMES = 5  # a message lists at most so many


def torchvision_names() -> list[str]:
    """Returns the names of torchvision's image classifiers."""
    from torchvision import models  # imported here because it takes seconds

    return models.list_models(module=models)


def timm_names() -> list[str]:
    """Returns the names of timm's networks without the tags of weights. Raises UserError where timm is missing."""
    require_timm("timm/NAME")
    import timm  # imported here because it is optional and takes a second

    return timm.list_models()


def check_library_name(name: str, key: str) -> None:
    """Raises UserError, with the nearest names, unless `name` is torchvision/NAME or timm/NAME of a network there."""
    library, _, network = name.partition("/")
    if library == "timm":
        require_timm(f"{key}={name}")
    known = torchvision_names() if library == "torchvision" else timm_names()
    if network in known:
        return
    plain, _, tag = network.partition(".")
    if library == "timm" and plain in known:
        raise UserError(
            f"{key}={name}, with the tag of weights",
            f"timm/{plain}",
            f"write {key}=timm/{plain}, and teacher.weights={tag} where these weights are wanted",
        )
    near = difflib.get_close_matches(network, known, _MAX_NAMES, 0.4) or known[:_MAX_NAMES]
    raise UserError(
        f"{key}={name}",
        f"an image classifier of {library}",
        f"name one of the nearest: {', '.join(f'{library}/{one}' for one in near)}; "
        f'python -m compress.models "{library}/*" lists all',
    )


def from_torchvision(name: str, classes: int, weights: str | None, image_size: int | None = None) -> nn.Module:
    """Builds torchvision's network; `weights` is a name in its enum, such as IMAGENET1K_V1.

    The classifier is new where the number of classes differs. Heads that only serve training (GoogLeNet, Inception) are
    removed. A network that needs a fixed size of image is built for `image_size`. Raises UserError for unknown weights,
    and where they cannot be downloaded.
    """
    from torchvision import models  # imported here because it takes seconds

    extra = _size_argument(name, image_size)
    if name in ("googlenet", "inception_v3") and not weights:
        # Their own initial weights take seconds to draw; each layer's default trains equally well with batch norm.
        extra |= {"aux_logits": False, "init_weights": False}
    if not weights:
        return _loadable(models.get_model(name, weights=None, num_classes=classes, **extra))
    _check_weights(weights, [member.name for member in models.get_model_weights(name)], name)
    try:
        if name.startswith("vit_"):
            network = _vision_transformer(name, weights, image_size)
        else:
            network = models.get_model(name, weights=weights, **extra)
    except OSError as error:
        raise download_error(weights, error) from error
    if name == "inception_v3":  # its weights can only be loaded with the auxiliary head
        network.aux_logits, network.AuxLogits = False, None
    _set_classes(network, classes)
    return _loadable(network)


def from_timm(
    name: str, classes: int, weights: str | None, channels: int = 3, image_size: int | None = None
) -> nn.Module:
    """Builds timm's network, as `from_torchvision` does; `weights` is the tag of pretrained weights: cvnets_in1k."""
    require_timm(name)
    import timm  # imported here because it is optional and takes a second

    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if image_size and timm.get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = image_size
    full = f"{name}.{weights}" if weights else name
    if weights:
        known = [one.partition(".")[2] for one in timm.list_models(f"{name}.*", pretrained=True)]
        _check_weights(weights, known, name)
    try:
        return _create_timm(full, bool(weights), arguments)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are subclasses
        if not weights:
            raise
        raise download_error(weights, error) from error


def require_timm(name: str) -> None:
    """Raises UserError where timm is not installed."""
    if find_spec("timm") is None:
        raise UserError(f"{name} without the package timm", "the extra timm installed", 'pip install "compress[timm]"')


def require_logits(
    network: nn.Module, name: str, key: str, shape: tuple[int, int, int], classes: int, size_key: str
) -> None:
    """Raises UserError unless `network` returns logits (N, `classes`) for images of `shape` (C, H, W).

    Some networks need images of a minimum size, or of one size, which the setting `size_key` gives.
    """
    where = next((value.device for value in network.parameters()), torch.device("cpu"))
    expected = f"a network from images (N, {', '.join(map(str, shape))}) to logits (N, {classes})"
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *shape, device=where))
    except Exception as error:  # whatever a library raises for a size that it does not accept
        raise build_error(name, key, shape[1], error, size_key) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        received = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{key}={name}, which gives {received} for two images", expected, "name another network")


def build_error(name: str, key: str, image_size: int | None, error: Exception, size_key: str) -> UserError:
    """Returns the error for a library's network that fails on images of this size."""
    cause = str(error).strip().splitlines()
    return UserError(
        f"{key}={name} for images of {image_size} pixels a side: {type(error).__name__}: {cause[0] if cause else ''}",
        "a size of image that it takes",
        f"set {size_key}={_usual_size(name)}, or name another network",
    )


def _usual_size(name: str) -> int:
    """Returns the image size for which a network was published; 224 where the library does not record it."""
    library, _, network = name.rpartition("/")
    if library == "timm" and find_spec("timm"):
        import timm

        published = timm.get_pretrained_cfg(network, allow_unregistered=True)
        return published.input_size[-1] if published else 224
    return 299 if network == "inception_v3" else 224


def _create_timm(full: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    """Creates timm's network, without the size of the images where it does not accept that argument."""
    import timm

    try:
        return timm.create_model(full, pretrained=pretrained, **arguments)
    except TypeError as error:
        if "img_size" not in arguments or "img_size" not in str(error):
            raise
        del arguments["img_size"]
        return timm.create_model(full, pretrained=pretrained, **arguments)


def _size_argument(name: str, image_size: int | None) -> dict[str, Any]:
    """Returns the argument that sets the image size of torchvision's network `name`; empty where it accepts any."""
    from torchvision import models

    if image_size is None:
        return {}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if "input_size" in inspect.signature(models.get_model_builder(name)).parameters or name == "maxvit_t":
        return {"input_size": (image_size, image_size)}
    return {}


def _vision_transformer(name: str, weights: str, image_size: int | None) -> nn.Module:
    """Builds a vision transformer with pretrained weights; interpolates its positions for another image size."""
    from torchvision import models

    member = models.get_model_weights(name)[weights]
    published = member.meta["min_size"][0]
    network = models.get_model(name, weights=None, image_size=image_size or published)
    state = member.get_state_dict(progress=True, check_hash=True)
    if image_size not in (None, published):
        state = models.vision_transformer.interpolate_embeddings(image_size, network.patch_size, state)
    network.load_state_dict(state)
    return network


def _check_weights(weights: str, known: list[str], name: str) -> None:
    if weights not in known:
        if not known:
            raise UserError(f"teacher.weights={weights}", f"null: {name} has none", "leave it out")
        raise UserError(f"teacher.weights={weights}", f"one of {', '.join(known)}", f"name one of these for {name}")


def download_error(weights: str | None, error: Exception) -> UserError:
    """Returns the error for pretrained weights that cannot be fetched."""
    return UserError(
        f"teacher.weights={weights}: {error}", "a network to fetch them from", "give the file as teacher.checkpoint"
    )


def _loadable(network: nn.Module) -> nn.Module:
    """Returns the network; MNASNet without its class, which refuses tensors without a version number."""
    if type(network).__name__ != "MNASNet":
        return network
    parts = {"layers": network.layers, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, classifier=network.classifier))


def _set_classes(network: nn.Module, classes: int) -> None:
    """Replaces the last layer, linear or a 1x1 convolution, by a new one where its number of outputs differs.

    In all of torchvision's families the layer that is defined last returns the logits, without auxiliary heads.
    """
    name, last = last_defined_layer(network)
    bias = last.bias is not None
    if isinstance(last, nn.Linear) and last.out_features != classes:
        network.set_submodule(name, nn.Linear(last.in_features, classes, bias=bias))
    elif isinstance(last, nn.Conv2d) and last.out_channels != classes:
        network.set_submodule(name, nn.Conv2d(last.in_channels, classes, last.kernel_size, bias=bias))
