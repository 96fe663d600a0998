"""Loads a data set by name: train, validation and test, split by the seed, normalised and fingerprinted."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from compress.config.data_settings import DataConfig
from compress.data.augmentation import BatchAugmentation
from compress.data.augmentation_levels import augmentation_of
from compress.data.box_augmentation import BoxAugmentation
from compress.data.builtin import ARRAYS, Arrays, to_memory
from compress.data.coco import coco
from compress.data.csv_file import csv_file
from compress.data.dataset import NO_LABEL, Data, Pixels, Split, digest, stratified_split
from compress.data.defaults import square_of
from compress.data.groups import split_by_group
from compress.data.huggingface import huggingface
from compress.data.image_folder import Files, imagefolder
from compress.data.kept import keep_decoded
from compress.data.labels import warn_of_missing_classes
from compress.data.targets import TARGETS
from compress.data.voc import voc
from compress.data.webdataset import webdataset
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_STATISTICS_IMAGES = 4096  # enough for a mean to three digits, and quick where files must be decoded

_FILES: dict[str, Callable[[DataConfig, Path | None], tuple[dict[str, Files], list[str], list[str]]]] = {
    "imagefolder": imagefolder,
    "csv": csv_file,
    "webdataset": webdataset,
    "huggingface": huggingface,
    "voc": voc,
    "coco": coco,
}


class _Source(NamedTuple):
    """A data set as it was read."""

    splits: dict[str, Pixels]
    classes: list[str]
    digests: list[str]  # of the images and labels of each split
    channels: int


def load_data(config: DataConfig, seed: int, manifests: Path | None = None) -> Data:
    """Returns the data set `config.name`. Raises UserError for files or labels that cannot be used.

    `manifests` is the folder that remembers which image files were read before; None: all are read.
    """
    source = _read_files(config, manifests) if config.name in _FILES else _read_arrays(config)
    splits, classes, digests, channels = source
    labels = {name: part.labels for name, part in splits.items()}
    TARGETS[config.task].check(labels, len(classes), str(config.root or config.name))
    if config.task == "classification":
        warn_of_missing_classes(labels["train"].numpy(), classes)
    val_from = "own" if "val" in splits else config.val_from
    index = {name: torch.arange(len(values)) for name, values in labels.items()}
    if val_from != "own":
        splits["val"] = splits[val_from]
        index[val_from], index["val"] = _hold_out(config, splits[val_from], seed)
    mean, std = _statistics(config, splits["train"], index["train"], channels)
    if config.name in _FILES:
        splits |= {name: keep_decoded(splits[name], index[name], name) for name in ("val", "test")}
    train, val, test = (
        Split(splits[name], index[name], mean, std, config.batch_size) for name in ("train", "val", "test")
    )
    if config.sampler == "balanced":
        train = replace(train, strata=_strata(config, train.labels))
    how = square_of(config)
    return Data(
        train=train,
        val=val,
        test=test,
        classes=classes,
        shape=(channels, how.size, how.size),
        augmentation=_augmentation(config, train.mean, channels),
        crop_share=how.crop_share,
        interpolation=how.interpolation,
        resize=how.resize,
        fingerprint=digest(*digests, *(part.index.numpy() for part in (train, val, test))),
        val_from=val_from,
        task=config.task,
    )


def _read_files(config: DataConfig, manifests: Path | None) -> _Source:
    splits, classes, digests = _FILES[config.name](config, manifests)
    pool = splits["train"].pool
    shared = {name: replace(files, pool=pool) for name, files in splits.items()}
    return _Source({**shared}, classes, digests, config.channels or 3)


def _read_arrays(config: DataConfig) -> _Source:
    arrays, classes = ARRAYS[config.name](config)
    _log_oblong(arrays)
    digests = [digest(*arrays[name]) for name in arrays]
    splits = {name: to_memory(*arrays[name], square_of(config).size) for name in arrays}
    channels = splits["train"].images.shape[1]
    _check_channels({name: part.images.shape[1] for name, part in splits.items()}, str(config.root))
    if config.channels not in (None, channels):
        raise UserError(
            f"data.channels={config.channels} for arrays with {channels}", "image files", "leave data.channels out"
        )
    return _Source({**splits}, classes, digests, channels)


def _augmentation(config: DataConfig, mean: torch.Tensor, channels: int) -> BatchAugmentation:
    if config.task == "detection":
        return BoxAugmentation(config.box_augmentation, (mean.flatten() * 255).round().int().tolist())
    return augmentation_of(config, channels)


def _strata(config: DataConfig, labels: torch.Tensor) -> torch.Tensor:
    """Returns the class (N,) of each train image, or its rarest label. Raises UserError where it has none."""
    if bool((labels == NO_LABEL).any()):
        raise UserError(
            "data.sampler=balanced with train images without labels",
            "labels: as many images of each class are drawn",
            "set data.sampler=random",
        )
    return TARGETS[config.task].strata(labels)


def _hold_out(config: DataConfig, pixels: Pixels, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the positions (N,) that stay in the split `config.val_from`, and those of its validation images."""
    strata = TARGETS[config.task].strata(pixels.labels)
    groups = pixels.groups if isinstance(pixels, Files) else None
    if groups is None:
        kept, held_out = stratified_split(strata, config.val_fraction, seed)
    else:
        kept, held_out = split_by_group(strata, groups, config.val_fraction, seed)
    if not len(held_out):
        kind = "class" if groups is None else "class and group"
        raise UserError(
            f"data.val_from={config.val_from} with {len(strata)} images in {config.val_from}, one of each {kind}",
            f"two images or more of a {kind}, to hold one of them out",
            f"add images to {config.val_from}",
        )
    return kept, held_out


def _log_oblong(arrays: Arrays) -> None:
    """Logs that only the middle of images is read that are no squares."""
    height, width = arrays["train"][0].shape[1:3]
    if height != width:
        log.info("images of %dx%d pixels: their middle square is read; pad them to squares to keep all", height, width)


def _check_channels(channels: dict[str, int], source: str) -> None:
    for name, count in channels.items():
        if count != channels["train"]:
            raise UserError(
                f"{source}: {name} has {count} channels, train {channels['train']}",
                "the same in every split",
                "convert one of them",
            )


def _statistics(
    config: DataConfig, pixels: Pixels, index: torch.Tensor, channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation of each channel, (1, C, 1, 1), from the settings or from the train split."""
    if config.mean is not None:
        if len(config.mean) != channels:
            raise UserError(f"data.mean with {len(config.mean)} values", f"{channels}, one a channel", "mend data.mean")
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    else:
        some = index[torch.linspace(0, len(index) - 1, min(len(index), _STATISTICS_IMAGES)).long()]
        mean, std = _mean_and_std((images for images, _ in pixels.stream(some.split(config.batch_size))), channels)
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def _mean_and_std(batches: Iterator[torch.Tensor], channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation of each channel, (C,), of pixels in [0, 1]; one batch at a time is in memory."""
    count, total, squares = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
    for images in batches:
        values = images.double()  # sums of bytes are exact
        count += values[:, 0].numel()
        total += values.sum((0, 2, 3))
        squares += values.square_().sum((0, 2, 3))
    variance = (squares - total.square() / count) / (count - 1)
    return total / count / 255, (variance.clamp_min(0).sqrt() / 255).clamp_min(1e-3)
