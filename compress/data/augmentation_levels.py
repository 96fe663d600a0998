"""Chooses how images are augmented: by a level, or by a key for each part."""

from compress.config.data_settings import DataConfig
from compress.data.augmentation import Augmentation
from compress.data.defaults import square_of
from compress.data.image_transforms import ImageTransforms
from compress.utils.errors import UserError

_SMALLEST_CROP = 0.25  # torchvision's 0.08 of the area leaves too little of images with few pixels
_ERASING = 0.1


def augmentation_of(data: DataConfig, channels: int) -> Augmentation:
    """Returns the augmentation of images with classes or labels.

    Raises UserError for changes of colours where the images are neither grey nor in colour.
    """
    padding = data.crop_padding or max(1, square_of(data).size // 16)
    chosen = {
        None: Augmentation(
            data.crop_padding, data.flip, ImageTransforms(data.resized_crop, data.auto_augment, data.erasing)
        ),
        "none": Augmentation(0, False),
        "light": Augmentation(padding, True),
        "standard": Augmentation(0, True, ImageTransforms(_SMALLEST_CROP, "none", 0.0)),
        "strong": Augmentation(0, True, ImageTransforms(_SMALLEST_CROP, "trivial", _ERASING)),
    }[data.augment]
    transforms = chosen.transforms
    if transforms is not None and transforms.auto_augment != "none" and channels not in (1, 3):
        raise UserError(
            f"data.auto_augment={transforms.auto_augment} with images of {channels} channels",
            "1 or 3 channels, whose colours torchvision changes",
            "set data.auto_augment=none, or a level below strong",
        )
    return chosen if transforms is not None and transforms.changes else Augmentation(chosen.crop_padding, chosen.flip)
