"""Reads how large the images of an .npz file are, without reading the images."""

import zipfile
from dataclasses import replace

import numpy as np

from compress.config.data_settings import DataConfig
from compress.utils.image_layout import many_images

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def with_array_size(data: DataConfig) -> DataConfig:
    """Returns `data` with the shorter side of the file's train images where `data.image_size` is 0, else as it is.

    A file that cannot be read has no size: `load_data` raises the error. Raises UserError for axes that are ambiguous.
    """
    if data.image_size != 0:
        return data
    try:
        with zipfile.ZipFile(data.root or "") as archive, archive.open("train_images.npy") as file:
            shape, _, _ = _HEADERS[np.lib.format.read_magic(file)](file)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return replace(data, image_size=None)
    without_images = np.empty((0, *shape[1:]), np.uint8)
    height, width = many_images(without_images, f"{data.root}: train_images").shape[1:3]
    return replace(data, image_size=min(height, width))
