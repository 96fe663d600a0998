"""Changes each image of a batch at random by torchvision's transforms, each from a seed of its own."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torchvision.transforms import v2


@dataclass(frozen=True)
class ImageTransforms:
    """Which of torchvision's transforms are applied, in this order."""

    resized_crop: float | None  # smallest share of the area that a crop keeps; None: no such crop
    auto_augment: str  # none, trivial (Mueller & Hutter 2021) or randaugment (Cubuk et al. 2020)
    erasing: float  # probability that a rectangle is blackened (Zhong et al. 2020)

    @property
    def changes(self) -> bool:
        """Returns whether an image differs from epoch to epoch."""
        return self.resized_crop is not None or self.auto_augment != "none" or self.erasing > 0

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Returns changed images (N, C, H, W), uint8 or float32 from 0 to 255, from as many `seeds` (N,)."""
        deep = images.is_floating_point()
        changed = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            for image, seed in zip(images / 255 if deep else images, seeds.tolist(), strict=True):
                torch.manual_seed(seed)
                changed.append(self._changed(image))
        return torch.stack(changed).mul(255) if deep else torch.stack(changed)

    @cached_property
    def _later(self) -> list[v2.Transform]:
        policies = {"none": [], "trivial": [v2.TrivialAugmentWide()], "randaugment": [v2.RandAugment()]}
        return [*policies[self.auto_augment], *([v2.RandomErasing(self.erasing)] if self.erasing else [])]

    def _changed(self, image: torch.Tensor) -> torch.Tensor:
        """Returns one image (C, H, W), changed."""
        if self.resized_crop is not None:
            image = v2.RandomResizedCrop(image.shape[1:], (self.resized_crop, 1.0), antialias=True)(image)
        for transform in self._later:
            image = transform(image)
        return image
