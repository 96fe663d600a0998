"""Crops, shrinks, flips and recolours images together with their boxes, as torchvision trains its detectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from compress.data.augmentation import ShardFn, all_rows
from compress.data.boxes import BOX, CLASS
from compress.data.dataset import NO_LABEL
from compress.utils.detections import PADDING
from compress.utils.errors import UserError

_SEEDS = 2**62


@dataclass
class BoxAugmentation:
    """Each image gets its own random changes, by a policy of torchvision's references/detection/presets.py.

    hflip: left-right flips; ssdlite: crops around boxes too; ssd: also changed colours, and smaller images on a ground
    of the colour `fill` (Liu et al. 2016, section 2.2). Raises UserError for colours of images that are neither grey
    nor RGB.
    """

    policy: str  # none, hflip, ssdlite or ssd
    fill: list[int]  # a channel each, 0 to 255

    def __post_init__(self) -> None:
        if self.policy == "ssd" and len(self.fill) not in (1, 3):
            raise UserError(
                f"data.box_augmentation=ssd with data.channels={len(self.fill)}",
                "1 or 3 channels: it changes colours",
                "set data.box_augmentation=ssdlite",
            )

    @property
    def changes(self) -> bool:
        """Returns whether an image differs from epoch to epoch."""
        return self.policy != "none"

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        shard: ShardFn = all_rows,
        batch_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns augmented images (N, C, S, S), uint8 or float32 from 0 to 255, and their targets (N, M, 6).

        `images` are the `shard` of a batch of `batch_size`. A seed is drawn for each of these, so that an image gets
        the same changes however many processes share the batch.
        """
        if not self.changes:
            return images, labels
        count = len(images) if batch_size is None else batch_size
        seeds = shard(torch.randint(_SEEDS, (count,), generator=generator))
        scale = 255 if images.is_floating_point() else 1  # torchvision takes floats to be in [0, 1]
        transforms = _transforms(self.policy, [value / scale for value in self.fill], images.shape[2])
        scaled = images / scale if scale > 1 else images
        changed, moved = torch.empty_like(images), torch.empty_like(labels)
        for at, seed in enumerate(seeds.tolist()):
            with torch.random.fork_rng([]):  # torchvision draws from torch's own generator
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of GPUs too
                changed[at], moved[at] = _augmented(scaled[at], labels[at], transforms)
        return changed * scale, moved


def _augmented(
    image: torch.Tensor, targets: torch.Tensor, transforms: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns an image (C, S, S) and its targets (M, 6) after `transforms`; targets that are lost become padding."""
    from torchvision import tv_tensors

    rows = targets[targets[:, CLASS] >= 0]
    boxes = tv_tensors.BoundingBoxes(rows[:, BOX], format="XYXY", canvas_size=tuple(image.shape[1:]))
    found = transforms({"image": tv_tensors.Image(image), "boxes": boxes, "rows": rows})
    unlabelled = bool((targets == NO_LABEL).all())
    moved = torch.full_like(targets, NO_LABEL if unlabelled else PADDING)
    moved[: len(found["rows"])] = found["rows"]
    moved[: len(found["rows"]), BOX] = found["boxes"].as_subclass(torch.Tensor)
    return found["image"].as_subclass(torch.Tensor), moved


def _transforms(policy: str, fill: list[float], size: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns the policy's transforms of a dict with an image, its boxes, and the rows that are kept with the boxes."""
    from torchvision.transforms import v2  # imported late: it takes seconds

    steps: list[Callable[[dict[str, Any]], dict[str, Any]]] = []
    if policy == "ssd":
        steps += [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill)]
    if policy in ("ssd", "ssdlite"):
        crop = v2.RandomIoUCrop()
        # Without boxes it would search in vain until it draws the choice that changes nothing.
        steps.append(lambda sample: crop(sample) if len(sample["boxes"]) else sample)
    steps += [
        v2.RandomHorizontalFlip(),
        v2.Resize((size, size), antialias=True),
        v2.ClampBoundingBoxes(),  # rounding may move a border beyond the image, and the next step removes such boxes
        v2.SanitizeBoundingBoxes(labels_getter=lambda sample: sample["rows"]),
    ]
    return v2.Compose(steps)
