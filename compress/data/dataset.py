"""The interface of a data set: three splits that yield normalised batches, and a fingerprint."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch

from compress.data.augmentation import BatchAugmentation, ShardFn, all_rows
from compress.data.kept import KeptPixels, keep_decoded
from compress.utils.errors import UserError

CPU = torch.device("cpu")
LabelledImages = tuple[torch.Tensor, torch.Tensor]  # images (N, C, H, W) and labels (N, ...)


class Batch(NamedTuple):
    """A training batch, or a part of it."""

    images: torch.Tensor  # (N, C, H, W), normalised
    labels: torch.Tensor  # (N, ...): classes (N,), rows of labels (N, K) or boxes (N, M, 6)
    positions: torch.Tensor  # (N,), the images' positions in `Split.pixels`


NO_LABEL = -1  # the label of an image whose class is unknown


class Pixels(Protocol):
    """Labelled images, in memory or decoded when they are read."""

    @property
    def labels(self) -> torch.Tensor:
        """Returns the labels (N, ...)."""
        ...

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[LabelledImages]:
        """Yields the images (N, C, H, W) and the labels (N, ...) of each batch of positions (N,).

        Pixels are uint8, or float32 from 0 to 255 where they have more than 8 bits.
        """
        ...

    def with_labels(self, labels: torch.Tensor) -> "Pixels":
        """Returns the same images with other labels (N, ...)."""
        ...

    def shuffle(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns the positions `index` (N,) in the random order in which an epoch reads them."""
        ...

    def close(self) -> None:
        """Ends the processes that read the images, if there are any."""
        ...


@dataclass
class Memory:
    """Images in memory, (N, C, H, W): uint8, or float32 from 0 to 255."""

    images: torch.Tensor
    labels: torch.Tensor

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[LabelledImages]:
        for chosen in batches:
            yield self.images[chosen], self.labels[chosen]

    def with_labels(self, labels: torch.Tensor) -> "Memory":
        return replace(self, labels=labels)

    def shuffle(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return index[torch.randperm(len(index), generator=generator)]

    def close(self) -> None:
        """Memory is read by no process."""


@dataclass
class Split:
    """Some of the images of `pixels`, normalised as they are read."""

    pixels: Pixels
    index: torch.Tensor  # (N,) int64, positions in `pixels`
    mean: torch.Tensor  # (1, C, 1, 1), of pixels in [0, 1]
    std: torch.Tensor
    batch_size: int
    strata: torch.Tensor | None = None  # (N,): the group of each image, as its class; an epoch has as many of each

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> torch.Tensor:
        """Returns the labels (N, ...), in the order in which `batches` yields them."""
        return self.pixels.labels[self.index]

    def batches(self, shard: ShardFn = all_rows, device: torch.device = CPU) -> Iterator[LabelledImages]:
        """Yields every image once, in order: the `shard` of each batch, float32 (N, C, H, W), and its labels (N, ...).

        The images are on `device`, in channels_last. Batches whose shard has no image are skipped.
        """
        shards = [shard(batch) for batch in self.index.split(self.batch_size)]
        for images, labels in self.pixels.stream([rows for rows in shards if len(rows)]):
            yield self._normalise(images, device), labels

    def shuffle(self, generator: torch.Generator) -> torch.Tensor:
        """Returns a random order of the images for `augmented`: positions in `pixels`, (N,); with `strata` a sample."""
        if self.strata is None:
            return self.pixels.shuffle(self.index, generator)
        return self.index[balanced_sample(self.strata, generator)]

    def augmented(
        self,
        order: torch.Tensor,
        generator: torch.Generator,
        augmentation: BatchAugmentation,
        done: int = 0,
        shard: ShardFn = all_rows,
        device: torch.device = CPU,
    ) -> Iterator[tuple[Batch, int]]:
        """Yields the augmented batches of an epoch in `order`, without its first `done` batches.

        Each item is the `shard` of a batch, its images on `device` in channels_last, and the number of images in the
        whole batch. A last batch with too few images for batch norm is skipped.
        """
        batches = [batch for batch in order.split(self.batch_size)[done:] if len(batch) >= self.smallest_batch()]
        streamed = self.pixels.stream([shard(batch) for batch in batches])
        for (images, labels), batch in zip(streamed, batches, strict=True):
            images, labels = augmentation(images, labels, generator, shard, len(batch))
            yield Batch(self._normalise(images, device), labels, shard(batch)), len(batch)

    def smallest_batch(self) -> int:
        """Returns the number of images in the smallest batch that `augmented` may yield."""
        return min(self.batch_size, len(self), 32)

    def steps(self) -> int:
        """Returns the number of batches in an epoch of `augmented`."""
        full, rest = divmod(len(self), self.batch_size)
        return full + (rest >= self.smallest_batch())

    def take(self, count: int, seed: int) -> "Split":
        """Returns a seeded random choice of `count` images, or all where there are fewer; files are decoded once."""
        generator = torch.Generator().manual_seed(seed)
        chosen = self.index[torch.randperm(len(self.index), generator=generator)[:count]]
        pixels = self.pixels
        if not isinstance(pixels, (Memory, KeptPixels)):
            pixels = keep_decoded(pixels, chosen)
        return Split(pixels, chosen, self.mean, self.std, self.batch_size)

    def _normalise(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Moves images (N, C, H, W) as they are, mostly uint8, and returns them as float32 in channels_last.

        Channels_last makes convolutions on the CPU about twice as fast. A whole row of pixels is computed at once: that
        takes half the time of the same arithmetic by channels.
        """
        if device.type == "cuda":
            images = images.pin_memory()
        images = images.to(device, non_blocking=True)
        count, channels, height, width = images.shape
        mean, std = (values.flatten().repeat(width).to(device) for values in (self.mean, self.std))
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)
        rows = rows.float().div_(255).sub_(mean).div_(std)
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


@dataclass
class Data:
    """A data set with its three splits."""

    train: Split
    val: Split
    test: Split
    classes: list[str]
    shape: tuple[int, int, int]  # (C, H, W)
    augmentation: BatchAugmentation
    fingerprint: str  # of every image, every label and which split each is in
    val_from: str = "own"  # the split that validation was held out of, train or test; own: the data set has one
    crop_share: float = 1.0  # how image files were cropped, see `center_crop`
    interpolation: str = "bilinear"
    resize: str = "crop"  # how they became squares, see `Square`
    task: str = "classification"  # a name in `compress.tasks`

    def close(self) -> None:
        """Ends the processes that read the images; a later pass starts new ones."""
        for split in (self.train, self.val, self.test):
            split.pixels.close()

    @property
    def labelled(self) -> bool:
        """Returns whether every train image has a label of its own."""
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


def stratified_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns positions of (train, validation), stratified by class and seeded; each class keeps an image in train."""
    generator = np.random.default_rng(seed)
    train, val = [], []
    for label in labels.unique():
        members = generator.permutation(torch.nonzero(labels == label).flatten().numpy())
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        val.append(members[:count])
        train.append(members[count:])
    return tuple(torch.from_numpy(np.sort(np.concatenate(part))) for part in (train, val))


def balanced_sample(strata: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns N positions in random order, as many of each of the groups `strata` (N,).

    Within a group no image comes once more than another, but for one.
    """
    groups = strata.unique()
    shares = torch.full((len(groups),), len(strata) // len(groups))
    shares[torch.randperm(len(groups), generator=generator)[: len(strata) % len(groups)]] += 1
    drawn = []
    for group, share in zip(groups, shares.tolist(), strict=True):
        members = torch.nonzero(strata == group).flatten()
        rounds = -(-share // len(members))
        orders = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
        drawn.append(torch.cat(orders)[:share] if orders else members[:0])
    everyone = torch.cat(drawn)
    return everyone[torch.randperm(len(everyone), generator=generator)]


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
    """Returns the SHA-256 of arrays, with their types and shapes, bytes and texts."""
    return digest_of_all(parts)


def digest_of_all(parts: Iterable[np.ndarray | bytes | str]) -> str:
    """Returns the `digest` of parts that need not fit into memory together."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()
