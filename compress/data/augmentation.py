"""Random crops and flips of a whole batch at a time: no image goes through Python on its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Rows of a batch (N, ...) -> those of it that this process takes: all, where it trains alone.
Part = Callable[[torch.Tensor], torch.Tensor]


def whole(rows: torch.Tensor) -> torch.Tensor:
    """The `Part` of a process that trains alone."""
    return rows


@dataclass
class Augmentation:
    """Each image gets its own crop from a zero-padded frame, and its own flip (He et al. 2015, section 4.2)."""

    crop_padding: int
    flip: bool

    @property
    def changes(self) -> bool:
        """Whether an image is another one each time."""
        return self.crop_padding > 0 or self.flip

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, part: Part = whole, batch: int | None = None
    ) -> torch.Tensor:
        """(N, C, H, W) in and out, uint8 or float32.

        `images` are the `part` of a batch of so many: all of them are drawn for, so that each gets the same crop and
        flip however many processes share the batch.
        """
        count = len(images) if batch is None else batch
        if self.crop_padding:
            top, left = torch.randint(0, 2 * self.crop_padding + 1, (2, count), generator=generator)
            images = crop(images, self.crop_padding, part(top), part(left))
        if self.flip:
            flipped = part(torch.rand(count, generator=generator)) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        return images


def crop(images: torch.Tensor, padding: int, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """A crop of the same size (N, C, H, W) from each image padded by `padding`, at its `top` and `left` (N,)."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)
