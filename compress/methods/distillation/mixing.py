"""Mixes the images of a batch in pairs, and their labels.

In the stage distill, the teacher answers the mixed images (Beyer et al. 2022, arXiv:2106.05237).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.config.schema import TrainConfig
from compress.data.dataset import Batch
from compress.methods.distillation.losses import MixedBatch


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed: the parameter alpha of Beta(alpha, alpha), from which a share is drawn; 0: never.

    All draws are from torch's global generator, whose state a saved training has.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, train: TrainConfig) -> "Mixing":
        """Returns the mixing that the settings ask for."""
        return cls(train.mixup, train.cutmix)

    @property
    def changes(self) -> bool:
        """Whether it changes any image."""
        return bool(self.mixup or self.cutmix)

    def __call__(self, batch: Batch) -> MixedBatch:
        """Returns the batch mixed with its own images in another order."""
        if not self.changes:
            return MixedBatch(batch)
        order = torch.randperm(len(batch.images))
        blend = bool(self.mixup) and (not self.cutmix or bool(torch.rand(()) < 0.5))
        share = _draw_share(self.mixup if blend else self.cutmix)
        mix = mixup if blend else cutmix
        order = order.to(batch.images.device)
        images, share = mix(batch.images, batch.images[order], share)
        return MixedBatch(batch._replace(images=images), batch.labels[order], share)


def mixup(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Returns share * images + (1 - share) * others, (N, C, H, W), and the share (Zhang et al. 2018, arXiv:1710.09412,
    equation 1).
    """
    return share * images + (1 - share) * others, share


def cutmix(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Puts a rectangle of `others` into `images`, (N, C, H, W), and returns the share of the pixels that stay.

    Its sides are sqrt(1 - share) of the image's and its centre is anywhere, so that the border cuts some of it off
    (Yun et al. 2019, arXiv:1905.04899, equations 1 and 2).
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - share)
    top, bottom = _span(height, side)
    left, right = _span(width, side)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(pixels: int, side: float) -> tuple[int, int]:
    """Returns where a span of `side` of the pixels begins and ends, around a random centre."""
    centre, half = int(torch.randint(pixels, ())), int(pixels * side) // 2
    return max(0, centre - half), min(pixels, centre + half)


def _draw_share(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())
