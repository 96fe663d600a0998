"""Levels of augmentation: the same for a seed, for parts of a batch and for ranks, and none that is not asked for."""

from dataclasses import replace

import pytest
import torch

from compress.config.data_settings import DataConfig
from compress.data.augmentation import Augmentation
from compress.data.augmentation_levels import augmentation_of
from compress.data.image_transforms import ImageTransforms
from compress.utils.errors import UserError

LEVELS = ("none", "light", "standard", "strong")


def images(channels: int = 3, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 16, 16), generator=generator, dtype=torch.uint8)


def augmented(augmentation: Augmentation, given: torch.Tensor, seed: int = 1, shard=lambda rows: rows) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return augmentation(shard(given), torch.arange(len(given)), generator, shard, len(given))[0]


def level(name: str | None, channels: int = 3) -> Augmentation:
    return augmentation_of(DataConfig(augment=name, image_size=16), channels)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_keeps_shape_and_kind_and_is_the_same_for_a_seed(name: str, channels: int) -> None:
    given, augmentation = images(channels), level(name, channels)
    found = augmented(augmentation, given)
    assert found.shape == given.shape
    assert found.dtype == torch.uint8
    assert torch.equal(found, augmented(augmentation, given))
    assert augmentation.changes == (name != "none")
    assert torch.equal(found, given) == (name == "none")
    assert torch.equal(found, augmented(augmentation, given, seed=2)) == (name == "none")


@pytest.mark.parametrize("name", LEVELS)
def test_two_processes_change_an_image_as_one_does(name: str) -> None:
    given = images()
    whole = augmented(level(name), given)
    parts = [augmented(level(name), given, shard=lambda rows, rank=rank: rows[rank::2]) for rank in (0, 1)]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])


def test_no_number_is_drawn_from_the_generator_of_others() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    augmented(level("strong"), images())
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_level_the_keys_decide_and_draw_as_before() -> None:
    config = DataConfig(crop_padding=2, flip=True, image_size=16)
    assert augmentation_of(config, 3) == Augmentation(2, True)
    erased = augmented(augmentation_of(replace(config, crop_padding=0, flip=False, erasing=1.0), 3), images() | 1)
    assert ((erased == 0) | (erased == (images() | 1))).all()
    assert (erased == 0).flatten(1).any(1).all()


def test_images_of_more_bits_stay_in_their_range() -> None:
    given = images().float() + 0.5
    found = augmented(Augmentation(0, False, ImageTransforms(0.5, "trivial", 0.5)), given)
    assert found.is_floating_point()
    assert found.min() >= 0
    assert found.max() <= 256
    assert found.max() > 100


def test_colours_of_two_channels_cannot_be_changed() -> None:
    with pytest.raises(UserError, match="auto_augment=trivial with images of 2 channels"):
        level("strong", 2)
