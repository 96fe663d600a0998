"""The preprocessing that pretrained weights expect: size, crop, interpolation and normalisation of images."""

import logging
from dataclasses import dataclass, replace

import torch

from compress.config.data_settings import FILES_WITH_CLASSES
from compress.config.schema import Config
from compress.data.array_size import with_array_size
from compress.data.dataset import Data, Split
from compress.data.defaults import with_defaults
from compress.models.registry import ZOO, find_entry

log = logging.getLogger("compress")


@dataclass
class Preprocessing:
    """How images were prepared for the weights of a library."""

    image_size: int
    crop_share: float  # side of the centre crop as a share of the resized shorter side
    interpolation: str
    mean: list[float]
    std: list[float]


def published_preprocessing(model: str, weights: str) -> Preprocessing | None:
    """Returns the preprocessing of the `weights` of `model`; None where the library has no weights of this name."""
    entry = find_entry(model) if model in ZOO or "/" in model else None
    if entry is None:
        return None
    if entry.timm:
        return _timm_preprocessing(entry.timm, weights)
    return _torchvision_preprocessing(entry.torchvision, weights) if entry.torchvision else None


def with_preprocessing(config: Config) -> Config:
    """Returns `config` with image size, crop and interpolation set where the user did not set them.

    They come from teacher.weights if there are any; otherwise they are the defaults. A size of 0 becomes the arrays'.
    """
    teacher, data = config.teacher, with_array_size(config.data)
    published = None
    if teacher.weights and not teacher.factory and data.task != "detection":  # a detector has a size of its own
        published = published_preprocessing(teacher.model, teacher.weights)
    if published is None:
        return replace(config, data=with_defaults(data))
    data = replace(data, image_size=data.image_size or published.image_size)
    if data.name in FILES_WITH_CLASSES:  # arrays are not cropped
        share, interpolation = data.crop_share or published.crop_share, data.interpolation or published.interpolation
        data = replace(data, crop_share=share, interpolation=interpolation)
    data = with_defaults(data)
    log.info(
        "as teacher.weights=%s expects: data.image_size=%d data.crop_share=%.4g data.interpolation=%s%s",
        teacher.weights,
        data.image_size,
        data.crop_share,
        data.interpolation,
        "" if data.mean else f", mean {_short(published.mean)}, std {_short(published.std)}",
    )
    return replace(config, data=data)


def with_normalisation(data: Data, config: Config) -> Data:
    """Returns `data` normalised as teacher.weights expects, unless the user set data.mean and data.std.

    A single grey channel uses the mean over the colours; other numbers of channels keep the statistics of the images.
    """
    teacher = config.teacher
    if config.data.mean is not None or not teacher.weights or teacher.factory:
        return data
    published = published_preprocessing(teacher.model, teacher.weights)
    channels = data.shape[0]
    if published is None or channels not in (1, len(published.mean)):
        return data
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (published.mean, published.std))
    if channels == 1:
        mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)

    def normalised(split: Split) -> Split:
        return replace(split, mean=mean, std=std)

    return replace(data, train=normalised(data.train), val=normalised(data.val), test=normalised(data.test))


def _torchvision_preprocessing(name: str, weights: str) -> Preprocessing | None:
    from torchvision import models  # imported late: it takes seconds

    known = models.get_model_weights(name)
    if weights not in known.__members__:
        return None
    published = known[weights].transforms()
    size = published.crop_size[0]
    return Preprocessing(
        size, size / published.resize_size[0], published.interpolation.value, list(published.mean), list(published.std)
    )


def _timm_preprocessing(name: str, weights: str) -> Preprocessing | None:
    import timm  # an extra, and a second to import

    if f"{name}.{weights}" not in timm.list_models(f"{name}.*", pretrained=True):
        return None
    published = timm.get_pretrained_cfg(f"{name}.{weights}")
    return Preprocessing(
        published.input_size[-1], published.crop_pct, published.interpolation, list(published.mean), list(published.std)
    )


def _short(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
