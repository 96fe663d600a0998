"""Default sizes and crops of images, where neither the user nor pretrained weights set them."""

from dataclasses import replace

from compress.config.data_settings import FILES_WITH_CLASSES, DataConfig
from compress.utils.images import Square

_OTHER_SIZE = 32  # pixels a side, for small arrays


def square_of(data: DataConfig) -> Square:
    """Returns how the images become squares: with a usual size, crop and interpolation where `data` sets none."""
    detection = data.task == "detection"
    usual = 320 if detection else 224 if data.name in FILES_WITH_CLASSES else _OTHER_SIZE  # SSDlite's, ImageNet's
    resize = "stretch" if detection else data.resize or "crop"
    return Square(data.image_size or usual, data.crop_share or 1.0, data.interpolation or "bilinear", resize)


def with_defaults(data: DataConfig) -> DataConfig:
    """Returns `data` with the size of images, the crop and the interpolation of `square_of`."""
    how = square_of(data)
    return replace(data, image_size=how.size, crop_share=how.crop_share, interpolation=how.interpolation)
