"""How images are prepared where neither the user nor pretrained weights say it."""

from dataclasses import replace

from compress.config.schema import DataConfig

_FOLDERS_SIZE, _OTHER_SIZE = 224, 32  # pixels a side: of photos in folders, and of small arrays


def with_defaults(data: DataConfig) -> DataConfig:
    """`data` with a size of images, a crop and an interpolation where none is set."""
    usual = _FOLDERS_SIZE if data.name == "imagefolder" else _OTHER_SIZE
    return replace(
        data,
        image_size=data.image_size or usual,
        crop_share=data.crop_share or 1.0,
        interpolation=data.interpolation or "bilinear",
    )
