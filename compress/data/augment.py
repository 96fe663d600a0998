"""Random crops and flips of a whole uint8 batch at a time: no image goes through Python on its own."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass
class Augmentation:
    """Each image gets its own crop from a zero-padded frame, and its own flip (He et al. 2015, section 4.2)."""

    crop_padding: int
    flip: bool

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """uint8 (N, C, H, W) in and out."""
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator)
        if self.flip:
            flipped = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        return images


def random_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """A crop of the same size (N, C, H, W) from each image padded by `padding`, at its own random place."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)
