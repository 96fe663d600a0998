"""Keeps decoded images in memory, so that a split that is read again and again is decoded once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from compress.utils.memory import free_bytes
from compress.utils.units import size_text

if TYPE_CHECKING:
    from compress.data.dataset import LabelledImages, Pixels

log = logging.getLogger("compress")

_SHARE = 5  # a fifth of the free memory, which the training needs too


@dataclass
class _Store:
    """The images (H, W, C) that were decoded, by their positions."""

    positions: set[int]  # that may be kept
    images: dict[int, torch.Tensor] = field(default_factory=dict)
    left_bytes: int | None = None  # for more of them; None before the first


@dataclass
class KeptPixels:
    """Images of which those at some positions are decoded once, as far as a share of the free memory holds them."""

    pixels: "Pixels"
    store: _Store
    name: str | None  # of the split, for the log; None: it is not logged

    @property
    def labels(self) -> torch.Tensor:
        return self.pixels.labels

    def stream(self, batches: Sequence[torch.Tensor]) -> "Iterator[LabelledImages]":
        kept = self.store.images
        missing = [torch.tensor([at for at in batch.tolist() if at not in kept]) for batch in batches]
        decoded = self.pixels.stream([positions for positions in missing if len(positions)])
        for batch, positions in zip(batches, missing, strict=True):
            if not len(positions):
                images = [kept[at] for at in batch.tolist()]
            else:
                fresh = next(decoded)[0].permute(0, 2, 3, 1)
                self._keep(positions, fresh)
                found = dict(zip(positions.tolist(), fresh, strict=True))
                images = [found[at] if at in found else kept[at] for at in batch.tolist()]
            yield _stacked(images), self.labels[batch]

    def with_labels(self, labels: torch.Tensor) -> "KeptPixels":
        return KeptPixels(self.pixels.with_labels(labels), self.store, self.name)

    def shuffle(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self.pixels.shuffle(index, generator)

    def close(self) -> None:
        self.pixels.close()

    def _keep(self, positions: torch.Tensor, images: torch.Tensor) -> None:
        """Keeps a copy of images (N, H, W, C): a worker's are in memory that processes share, of which there is little.

        Images stay out where no memory is left for them, and where they are not among those to keep.
        """
        store = self.store
        if store.left_bytes is None:
            store.left_bytes = free_bytes() // _SHARE
            self._log(images[0].nbytes * len(store.positions))
        if images.nbytes > store.left_bytes or not store.positions.issuperset(positions.tolist()):
            return
        store.left_bytes -= images.nbytes
        store.images |= zip(positions.tolist(), images.clone(), strict=True)

    def _log(self, all_bytes: int) -> None:
        left = self.store.left_bytes or 0
        if self.name and all_bytes <= left:
            log.info("%s: the decoded images are kept in memory, %s", self.name, size_text(all_bytes))
        elif self.name:
            text = (
                "%s: %s of %s of decoded images are kept in memory, a %dth of what is free; the others are decoded anew"
            )
            log.info(text, self.name, size_text(left), size_text(all_bytes), _SHARE)


def keep_decoded(pixels: "Pixels", positions: torch.Tensor, name: str | None = None) -> KeptPixels:
    """Returns `pixels` of which the images at `positions` (N,) are decoded once; `name` is shown in the log."""
    return KeptPixels(pixels, _Store(set(positions.tolist())), name)


def _stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Returns images (H, W, C), of 8 bits or more, as (N, C, H, W)."""
    deep = any(image.is_floating_point() for image in images)
    return torch.stack([image.float() for image in images] if deep else images).permute(0, 3, 1, 2)
