"""How oblong images become squares: the same pixels in training and in prediction, by each rule."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.config.compose import compose_recipe
from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.dataset import Data
from compress.utils.errors import UserError
from compress.utils.images import Square, center_crop, preprocess

RULES = ("crop", "stretch", "pad")


def write(root: Path, suffix: str) -> list[Path]:
    """Two oblong images a class and split, one high and one wide."""
    generator = np.random.default_rng(0)
    paths = []
    for split in ("train", "val", "test"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for at, size in enumerate([(40, 20), (18, 33)]):
                path = root / split / label / f"{at}{suffix}"
                if suffix == ".tif":  # 16 bits
                    Image.fromarray(generator.integers(0, 65535, size, dtype=np.uint16)).save(path)
                else:
                    Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
                paths.append(path)
    return paths


def described(data: Data) -> dict:
    keys = ("crop_share", "interpolation", "resize", "mean", "std")
    return {"shape": list(data.shape)} | {key: getattr(data, key) for key in keys}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_file_is_read_in_training_as_in_prediction(tmp_path: Path, rule: str, suffix: str) -> None:
    paths = write(tmp_path, suffix)
    share = 0.8 if rule == "crop" else None
    config = DataConfig("imagefolder", str(tmp_path), image_size=16, workers=0, resize=rule, crop_share=share)
    config.mean, config.std = [0.4] * 3, [0.3] * 3
    data = load_data(config, 0)
    images = [image for batch, _ in data.test.batches() for image in batch.numpy()]
    for path, found in zip(sorted(path for path in paths if "test" in path.parts), images, strict=True):
        with Image.open(path) as image:
            wanted = preprocess(image, described(data), str(path))
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (16, 16), (300, 1)])
def test_a_padded_image_is_whole_between_black_bars(size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, (255, 255, 255))
    pixels = np.asarray(center_crop(white, Square(16, resize="pad")))
    assert pixels.shape == (16, 16, 3)
    longer, shorter = max(size), min(size)
    kept = max(1, round(16 * shorter / longer))
    assert (pixels > 0).all(2).sum() == 16 * kept
    bars = (pixels.max(2) == 0).all(0 if size[0] < size[1] else 1)
    assert bars.sum() == 16 - kept
    assert abs(int(bars[:8].sum()) - int(bars[8:].sum())) <= 1


def test_a_crop_of_what_is_kept_whole_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.crop_share=0\.9 with data\.resize=pad"):
        compose_recipe("mobilenet_int8", ["data=imagefolder", "data.root=x", "data.resize=pad", "data.crop_share=0.9"])


def test_arrays_are_not_resized_by_a_rule() -> None:
    with pytest.raises(UserError, match=r"data\.resize=pad with data=digits"):
        compose_recipe("mobilenet_int8", ["data.resize=pad"])
