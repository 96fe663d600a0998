"""What a data set is to the rest of the project: three splits that yield normalised batches, and a fingerprint."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from compress.data.augment import Augmentation
from compress.errors import UserError

Batch = tuple[torch.Tensor, torch.Tensor]

NO_LABEL = -1  # of an image whose class nobody has told


class Pixels(Protocol):
    """Labelled images: held in memory, or decoded as they are asked for."""

    labels: torch.Tensor  # (N,) int64

    def stream(self, order: torch.Tensor, batch_size: int) -> Iterator[Batch]:
        """Batches of uint8 images (N, C, H, W) with their labels (N,), in the given order."""
        ...


@dataclass
class Memory:
    """Images that fit into memory, as uint8 (N, C, H, W)."""

    images: torch.Tensor
    labels: torch.Tensor

    def stream(self, order: torch.Tensor, batch_size: int) -> Iterator[Batch]:
        for chosen in order.split(batch_size):
            yield self.images[chosen], self.labels[chosen]


@dataclass
class Split:
    """Some of the images of `pixels`, normalised as they are read."""

    pixels: Pixels
    index: torch.Tensor  # (N,) int64, positions in `pixels`
    mean: torch.Tensor  # (1, C, 1, 1), of pixels in [0, 1]
    std: torch.Tensor
    batch_size: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> torch.Tensor:
        """The labels (N,), in the order in which `batches` yields them."""
        return self.pixels.labels[self.index]

    def batches(self) -> Iterator[Batch]:
        """Every image once, in order: float32 (N, C, H, W) and labels (N,)."""
        for images, labels in self.pixels.stream(self.index, self.batch_size):
            yield self._normalise(images), labels

    def shuffle(self, generator: torch.Generator) -> torch.Tensor:
        """A random order of the images for `augmented`: positions in `pixels`, (N,)."""
        return self.index[torch.randperm(len(self.index), generator=generator)]

    def augmented(
        self, order: torch.Tensor, generator: torch.Generator, augmentation: Augmentation, done: int = 0
    ) -> Iterator[Batch]:
        """One epoch in `order`, behind its first `done` batches, augmented.

        A rest of fewer images than batch norm can bear is left out.
        """
        for images, labels in self.pixels.stream(order[done * self.batch_size :], self.batch_size):
            if len(labels) >= min(self.batch_size, len(self), 32):
                yield self._normalise(augmentation(images, generator)), labels

    def steps(self) -> int:
        """Batches in an epoch of `augmented`."""
        whole, rest = divmod(len(self), self.batch_size)
        return whole + (rest >= min(self.batch_size, len(self), 32))

    def take(self, count: int, seed: int) -> "Split":
        """A seeded random choice of `count` images, or all where there are fewer."""
        generator = torch.Generator().manual_seed(seed)
        chosen = self.index[torch.randperm(len(self.index), generator=generator)[:count]]
        return Split(self.pixels, chosen, self.mean, self.std, self.batch_size)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std)


@dataclass
class Data:
    """A data set, split."""

    train: Split
    val: Split
    test: Split
    classes: list[str]
    shape: tuple[int, int, int]  # (C, H, W)
    augmentation: Augmentation
    fingerprint: str  # of every image, every label and which split each is in

    @property
    def labelled(self) -> bool:
        """Whether the train images have labels of their own."""
        return not bool((self.train.labels == NO_LABEL).any())

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}

    @property
    def mean(self) -> list[float]:
        return self.train.mean.flatten().tolist()

    @property
    def std(self) -> list[float]:
        return self.train.std.flatten().tolist()


def hold_out(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of (train, validation), stratified by class and seeded; each class keeps an image in train."""
    generator = np.random.default_rng(seed)
    train, val = [], []
    for label in labels.unique():
        members = generator.permutation(torch.nonzero(labels == label).flatten().numpy())
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        val.append(members[:count])
        train.append(members[count:])
    return tuple(torch.from_numpy(np.sort(np.concatenate(part))) for part in (train, val))


def check_labels(labels: dict[str, torch.Tensor], classes: int, source: str) -> None:
    """Raises UserError unless every label of every split is in 0..classes-1 and train has two classes or more.

    The train split may have no label at all.
    """
    unlabelled = len(labels["train"]) > 0 and bool((labels["train"] == NO_LABEL).all())
    if len(labels["train"]) and not unlabelled and len(labels["train"].unique()) < 2:
        raise UserError(f"{source}: one class only in train", "two classes or more", "add images of another class")
    for split, values in labels.items():
        if split == "train" and unlabelled:
            continue
        if len(values) == 0:
            raise UserError(f"{source}: no images in {split}", "at least one", "add images to that split")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"{source}: labels from {low} to {high} in {split}",
                f"labels from 0 to {classes - 1}, the classes that train has",
                "number the classes from 0 and put each of them into train",
            )


def digest(*parts: np.ndarray | bytes | str) -> str:
    """SHA-256 over arrays, bytes and texts, with their shapes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()
