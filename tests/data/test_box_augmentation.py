"""Augmented boxes stay on their objects, and repeat however many processes share a batch."""

import pytest
import torch

from compress.data.augmentation import BatchAugmentation
from compress.data.box_augmentation import BoxAugmentation
from compress.data.boxes import BOX, CLASS, FLAG, PADDING
from compress.data.dataset import NO_LABEL
from compress.training.distributed import ProcessGroup
from compress.utils.errors import UserError

SIZE, GREY = 64, [128, 128, 128]
POLICIES = ["hflip", "ssdlite", "ssd"]


def drawn(count: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns grey images, each with a white rectangle, and targets with its box and its number as the class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((count, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    targets = torch.full((count, rows, 6), PADDING)
    for number in range(count):
        left, top = torch.randint(0, SIZE // 2, (2,), generator=generator).tolist()
        width, height = torch.randint(10, SIZE // 2, (2,), generator=generator).tolist()
        images[number, :, top : top + height, left : left + width] = 255
        targets[number, 0] = torch.tensor([number, left, top, left + width, top + height, number % 2])
    return images, targets


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("policy", ["hflip", "ssdlite"])
def test_a_box_stays_on_its_object(policy: str) -> None:
    """The white pixels of an image are those in its box, up to the pixel that resizing mixes."""
    images, targets = drawn(200)
    changed, moved = BoxAugmentation(policy, GREY)(images, targets, seeded())
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert moved.shape == targets.shape
    assert moved.dtype == torch.float32
    kept = 0
    for number, (image, (target, *others)) in enumerate(zip(changed, moved, strict=True)):
        assert all((other == PADDING).all() for other in others)
        rows, columns = torch.nonzero(image[0] > 191, as_tuple=True)
        assert target[CLASS] == number  # a crop keeps the centre of a box, and here each image has a single one
        assert target[FLAG] == number % 2
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(found, target[BOX], atol=2.5, rtol=0)
        kept += 1
    assert kept == 200
    assert not torch.equal(moved, targets)


def test_ssd_shrinks_and_recolours_images_and_keeps_boxes_on_objects() -> None:
    images, targets = drawn(200)
    changed, moved = BoxAugmentation("ssd", GREY)(images, targets, seeded())
    for image, (target, *_) in zip(changed.float(), moved, strict=True):
        if target[CLASS] < 0 or (target[3:5] - target[1:3]).min() < 8:
            continue
        left, top, right, bottom = (target[BOX] + torch.tensor([2.5, 2.5, -2.5, -2.5])).round().int().tolist()
        inside = image[:, top:bottom, left:right]
        assert inside.amax((1, 2)).sub(inside.amin((1, 2))).max() <= 8  # of one colour, whichever it became
    assert (changed.float().amax((2, 3)).amax(1) < 240).any()  # darker than white
    areas = (targets[:, 0, 3] - targets[:, 0, 1]) * (targets[:, 0, 4] - targets[:, 0, 2])
    shrunk = (moved[:, 0, 3] - moved[:, 0, 1]) * (moved[:, 0, 4] - moved[:, 0, 2])
    assert (shrunk < areas / 2).any()
    assert (shrunk > areas * 2).any()


@pytest.mark.parametrize("policy", POLICIES)
def test_boxes_stay_in_the_image_and_at_its_border(policy: str) -> None:
    """A box of the whole image is never lost to rounding."""
    images = torch.zeros(100, 3, SIZE, SIZE, dtype=torch.uint8)
    targets = torch.tensor([[[0.0, 0, 0, SIZE, SIZE, 0]]]).repeat(100, 1, 1)
    _, moved = BoxAugmentation(policy, GREY)(images, targets, seeded())
    assert (moved[..., CLASS] == 0).all()
    assert moved[..., BOX].min() >= 0
    assert moved[..., BOX].max() <= SIZE


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("world", [2, 15])
def test_parts_make_up_the_batch(policy: str, world: int) -> None:
    """With the very changes that one process would have drawn; a part may have no image."""
    images, targets = drawn(13)
    augmentation = BoxAugmentation(policy, GREY)
    wanted = augmentation(images, targets, seeded())
    parts = [ProcessGroup(rank, world).shard for rank in range(world)]
    found = [augmentation(part(images), part(targets), seeded(), part, len(images)) for part in parts]
    for column, whole in zip(zip(*found, strict=True), wanted, strict=True):
        assert torch.equal(torch.cat(column), whole)


@pytest.mark.parametrize("policy", POLICIES)
def test_epochs_differ_and_repeat_and_leave_other_random_numbers_alone(policy: str) -> None:
    images, targets = drawn(8)
    augmentation: BatchAugmentation = BoxAugmentation(policy, GREY)
    generator, state = seeded(), torch.get_rng_state()
    first, second = augmentation(images, targets, generator), augmentation(images, targets, generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], second[0])
    torch.manual_seed(7)
    assert torch.equal(augmentation(images, targets, seeded())[0], first[0])
    assert augmentation.changes


def test_none_changes_nothing() -> None:
    images, targets = drawn(4)
    augmentation = BoxAugmentation("none", GREY)
    changed, same = augmentation(images, targets, seeded())
    assert not augmentation.changes
    assert torch.equal(changed, images)
    assert torch.equal(same, targets)


@pytest.mark.parametrize("value", [PADDING, float(NO_LABEL)])
@pytest.mark.parametrize("policy", POLICIES)
def test_images_without_boxes_keep_none(policy: str, value: float) -> None:
    images, _ = drawn(8)
    _, moved = BoxAugmentation(policy, GREY)(images, torch.full((8, 2, 6), value), seeded())
    assert (moved == value).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_deep_pixels_change_as_bytes_do(policy: str) -> None:
    """Up to what a rounding to bytes after each step may lose."""
    images, targets = drawn(16)
    augmentation = BoxAugmentation(policy, GREY)
    changed, moved = augmentation(images, targets, seeded())
    deep, same = augmentation(images.float(), targets, seeded())
    assert deep.dtype == torch.float32
    assert torch.equal(same, moved)
    assert (deep - changed.float()).abs().max() < 12
    assert (deep - changed.float()).abs().mean() < 1


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int) -> None:
    images, targets = drawn(8)
    images = images[:, :1].repeat(1, channels, 1, 1)
    changed, _ = BoxAugmentation("ssdlite", [128] * channels)(images, targets, seeded())
    assert changed.shape == images.shape
    if channels == 1:
        assert BoxAugmentation("ssd", [128])(images, targets, seeded())[0].shape == images.shape
    else:
        with pytest.raises(UserError, match=r"box_augmentation=ssd with data\.channels=4; expected 1 or 3"):
            BoxAugmentation("ssd", [128] * 4)
