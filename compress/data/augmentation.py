"""Crops and flips images at random, a whole batch at a time: Python handles no single image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from compress.data.image_transforms import ImageTransforms

# Rows of a batch (N, ...) -> the rows that this process takes: all of them where it trains alone.
ShardFn = Callable[[torch.Tensor], torch.Tensor]


def all_rows(rows: torch.Tensor) -> torch.Tensor:
    """Returns the shard of a process that trains alone: the whole batch."""
    return rows


class BatchAugmentation(Protocol):
    """Changes a batch of images at random, and their labels with them."""

    @property
    def changes(self) -> bool:
        """Returns whether an image differs from epoch to epoch."""
        ...

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        shard: ShardFn = all_rows,
        batch_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the augmented images (N, C, H, W), the `shard` of a batch of `batch_size`, and their labels."""
        ...


@dataclass
class Augmentation:
    """Each image gets its own crop from a zero-padded frame, and its own flip (He et al. 2015, section 4.2).

    Then come torchvision's transforms, where any is chosen.
    """

    crop_padding: int
    flip: bool
    transforms: ImageTransforms | None = None

    @property
    def changes(self) -> bool:
        """Returns whether an image differs from epoch to epoch."""
        return self.crop_padding > 0 or self.flip or self.transforms is not None

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        shard: ShardFn = all_rows,
        batch_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns augmented images (N, C, H, W), uint8 or float32, and the labels as they are.

        `images` are the `shard` of a batch of `batch_size`. Random numbers are drawn for all of them, so that each
        image is changed the same way however many processes share the batch.
        """
        count = len(images) if batch_size is None else batch_size
        if self.crop_padding:
            top, left = torch.randint(0, 2 * self.crop_padding + 1, (2, count), generator=generator)
            images = crop(images, self.crop_padding, shard(top), shard(left))
        if self.flip:
            flipped = shard(torch.rand(count, generator=generator)) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        if self.transforms is not None:
            seeds = torch.randint(0, 2**62, (count,), generator=generator)
            images = self.transforms(images, shard(seeds))
        return images, labels


def crop(images: torch.Tensor, padding: int, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Returns a crop (N, C, H, W) of each image padded by `padding`, of the same size, at its `top` and `left` (N,)."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)
