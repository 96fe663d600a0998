"""Decoded images are kept as far as memory allows, and are those that a decoder yields each time."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from compress.data import kept
from compress.data.dataset import LabelledImages, Memory, Split
from compress.data.kept import KeptPixels, keep_decoded

SIZE_BYTES = 3 * 4 * 4  # of an image


@dataclass
class Counted:
    """Images that count how often they are decoded; those of `deep` have more than 8 bits."""

    labels: torch.Tensor
    deep: tuple[int, ...] = ()
    decoded: list[int] = field(default_factory=list)
    closed: bool = False

    def stream(self, batches: Sequence[torch.Tensor]) -> Iterator[LabelledImages]:
        for batch in batches:
            self.decoded += batch.tolist()
            images = torch.stack([torch.full((3, 4, 4), at, dtype=torch.uint8) for at in batch.tolist()])
            deep = torch.isin(batch, torch.tensor(self.deep))
            yield (images + deep.view(-1, 1, 1, 1) * 0.5 if deep.any() else images), self.labels[batch]

    def with_labels(self, labels: torch.Tensor) -> "Counted":
        return Counted(labels, self.deep, self.decoded)

    def close(self) -> None:
        self.closed = True


def counted(**settings: object) -> Counted:
    return Counted(torch.arange(100, 120), **settings)


def read(pixels: KeptPixels | Counted, positions: Sequence[int], size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(pixels.stream(torch.tensor(positions).split(size)))
    return torch.cat([images.float() for images, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.fixture(autouse=True)
def _much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "free_bytes", lambda: 10**9)


def test_each_image_is_decoded_once_in_whatever_batches() -> None:
    source = counted()
    pixels = keep_decoded(source, torch.arange(3, 13))
    for positions, size in (([*range(3, 8)], 2), ([*range(3, 13)], 4), ([12, 3, 7], 1), ([5, 4], 3)):
        for found, expected in zip(read(pixels, positions, size), read(counted(), positions, size), strict=True):
            assert torch.equal(found, expected)
    assert sorted(source.decoded) == [*range(3, 13)]


def test_what_is_kept_cannot_be_changed_from_outside() -> None:
    pixels = keep_decoded(counted(), torch.arange(4))
    for _ in range(2):
        ((images, _),) = pixels.stream([torch.arange(4)])
        assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        images.zero_()


def test_as_many_are_kept_as_memory_holds(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kept, "free_bytes", lambda: 5 * 9 * SIZE_BYTES)  # a fifth of it holds two batches of four
    source = counted()
    pixels = keep_decoded(source, torch.arange(20), "val")
    with caplog.at_level(logging.INFO, "compress"):
        for _ in range(2):
            for found, expected in zip(read(pixels, range(20)), read(counted(), range(20)), strict=True):
                assert torch.equal(found, expected)
    assert len(source.decoded) == 20 + 12
    assert "val: 432 B of 960 B of decoded images are kept in memory" in caplog.text


def test_the_log_says_that_all_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "compress"):
        read(keep_decoded(counted(), torch.arange(20), "val"), range(20))
        read(keep_decoded(counted(), torch.arange(20)), range(20))
    assert caplog.messages == ["val: the decoded images are kept in memory, 960 B"]


def test_images_of_more_bits_keep_theirs() -> None:
    source = counted(deep=(2, 9))
    pixels = keep_decoded(source, torch.arange(12))
    for size in (4, 5):
        for found, expected in zip(read(pixels, range(12), size), read(source, range(12), size), strict=True):
            assert torch.equal(found, expected)
    first = next(pixels.stream([torch.tensor([4, 5])]))[0]
    assert first.dtype == torch.uint8


def test_other_labels_share_what_is_kept() -> None:
    source = counted()
    pixels = keep_decoded(source, torch.arange(8))
    read(pixels, range(8))
    other = pixels.with_labels(torch.arange(20))
    assert read(other, range(8))[1].tolist() == [*range(8)]
    assert len(source.decoded) == 8
    pixels.close()
    assert source.closed


def test_a_choice_of_files_is_decoded_once_and_one_of_memory_is_left_alone() -> None:
    source, zeros = counted(), torch.zeros(1, 3, 1, 1)
    some = Split(source, torch.arange(20), zeros, zeros + 1, 4).take(6, seed=0)
    whole = [torch.cat([images for images, _ in some.batches()]) for _ in range(2)]
    assert torch.equal(*whole)
    assert len(source.decoded) == 6
    assert some.take(3, seed=0).pixels is some.pixels
    memory = Memory(torch.zeros(20, 3, 4, 4, dtype=torch.uint8), source.labels)
    assert Split(memory, torch.arange(20), zeros, zeros + 1, 4).take(6, seed=0).pixels is memory
