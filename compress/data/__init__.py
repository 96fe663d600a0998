"""The data sets: a name -> train, validation and test, split by the seed, normalised and fingerprinted."""

import logging

import torch

from compress.config.schema import DataConfig
from compress.data.augmentation import Augmentation
from compress.data.builtin import ARRAYS, Arrays, to_memory
from compress.data.dataset import Data, Pixels, Split, digest, stratified_split
from compress.data.defaults import with_defaults
from compress.data.image_folder import imagefolder
from compress.data.labels import note_classes_without_images
from compress.data.targets import TARGETS
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_STATISTICS_IMAGES = 4096  # enough for a mean to three digits, and quick where files must be decoded


def load_data(config: DataConfig, seed: int) -> Data:
    """The data set `config.name`. Raises UserError for files or labels that cannot be used."""
    config = with_defaults(config)
    if config.name == "imagefolder":
        splits, classes, digests = imagefolder(config)
        channels = config.channels or 3
    else:
        arrays, classes = ARRAYS[config.name](config)
        _note_oblong(arrays)
        digests = [digest(*arrays[name]) for name in arrays]
        splits = {name: to_memory(*arrays[name], config.image_size) for name in arrays}
        channels = splits["train"].images.shape[1]
        _check_channels({name: part.images.shape[1] for name, part in splits.items()}, str(config.root))
        if config.channels not in (None, channels):
            raise UserError(
                f"data.channels={config.channels} for arrays with {channels}", "image files", "leave data.channels out"
            )
    targets = TARGETS[config.task]
    targets.check({name: part.labels for name, part in splits.items()}, len(classes), str(config.root or config.name))
    if config.task == "classification":
        note_classes_without_images(splits["train"].labels.numpy(), classes)
    index = {name: torch.arange(len(part.labels)) for name, part in splits.items()}
    source = "own" if "val" in splits else config.val_from
    if source != "own":
        splits["val"] = splits[source]
        index[source], index["val"] = stratified_split(targets.strata(splits[source].labels), config.val_fraction, seed)
        if not len(index["val"]):
            raise UserError(
                f"data.val_from={source} with {len(splits[source].labels)} images in {source}, one of each class",
                "two images or more of a class, to hold one of them out",
                f"add images to {source}",
            )
    mean, std = _statistics(config, splits["train"], index["train"], channels)
    train, val, test = (
        Split(splits[name], index[name], mean, std, config.batch_size) for name in ("train", "val", "test")
    )
    return Data(
        train=train,
        val=val,
        test=test,
        classes=classes,
        shape=(channels, config.image_size, config.image_size),
        augmentation=Augmentation(config.crop_padding, config.flip),
        crop_share=config.crop_share,
        interpolation=config.interpolation,
        fingerprint=digest(*digests, *(part.index.numpy() for part in (train, val, test))),
        val_from=source,
        task=config.task,
    )


def _note_oblong(arrays: Arrays) -> None:
    """Logs what is not seen of images that are no squares."""
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
    """Mean and deviation a channel, (1, C, 1, 1), as configured or of the train split."""
    if config.mean is not None:
        if len(config.mean) != channels:
            raise UserError(f"data.mean with {len(config.mean)} values", f"{channels}, one a channel", "mend data.mean")
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    else:
        some = index[torch.linspace(0, len(index) - 1, min(len(index), _STATISTICS_IMAGES)).long()]
        images = torch.cat([batch for batch, _ in pixels.stream(some.split(config.batch_size))]).double() / 255
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp_min(1e-3)
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)
