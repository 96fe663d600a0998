"""Every reader sees an image alike: upright, by its true range, its middle square, in the network's channels."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.builtin import to_memory
from compress.data.image_folder import Files
from compress.data.in_memory import in_memory_arrays
from compress.export.predict import _several
from compress.utils.errors import UserError
from compress.utils.images import Square, preprocess, read, square, upright

PIXELS = 16


def described(channels: int, size: int = PIXELS) -> dict:
    return {"shape": [channels, size, size], "mean": [0.0] * channels, "std": [1.0] * channels}


def trained_on(image: Image.Image | np.ndarray, channels: int, folder: Path | None = None) -> np.ndarray:
    """(C, S, S) of pixels in [0, 1], as a stage is trained and measured on an image: from a file, or from memory."""
    if folder is None:
        arrays, _ = in_memory_arrays([([image] * 2, [0, 1]), None, ([image] * 2, [0, 1])], PIXELS)
        return to_memory(*arrays["train"], PIXELS).images[0].numpy() / 255
    image.save(folder / "image.png")
    files = Files([folder / "image.png"], torch.zeros(1, dtype=torch.int64), Square(PIXELS), 0, channels)
    return next(files.stream([torch.tensor([0])]))[0][0].numpy() / 255


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


ARRAYS = {
    "grey": noise(28, 84),
    "one channel": noise(28, 84, 1),
    "colour": noise(40, 25, 3),
    "four": noise(40, 25, 4),
    "channels first": noise(3, 28, 84),
    "thirteen": noise(24, 24, 13),
    "sixteen bits": noise(30, 20, dtype=np.uint16),
    "floats": noise(30, 20, 3) / np.float32(255) * 0.7,
    "halves": (noise(30, 20, 3) / 255).astype(np.float16),
    "booleans": noise(30, 20) > 127,
    "as it is": noise(PIXELS, PIXELS, 3),
}


@pytest.mark.parametrize("image", ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_trained_on_as_it_is_predicted(image: np.ndarray) -> None:
    trained = trained_on(image, 0)
    assert np.abs(trained - preprocess(image, described(len(trained)))).max() < 1e-6
    assert trained.shape[1:] == (PIXELS, PIXELS)
    assert trained.std() > 0.01


@pytest.mark.parametrize("image", [torch.rand(3, 20, 30), torch.rand(20, 30).bfloat16()], ids=["float32", "bfloat16"])
def test_so_is_a_tensor(image: torch.Tensor) -> None:
    from compress.utils.image_layout import to_numpy

    trained = trained_on(image, 0)
    assert np.abs(trained - preprocess(to_numpy(image), described(len(trained)))).max() < 1e-6


MODES = {
    "1": Image.fromarray(noise(20, 30)).convert("1"),
    "L": Image.fromarray(noise(20, 30)),
    "LA": Image.fromarray(noise(20, 30)).convert("LA"),
    "P": Image.fromarray(noise(20, 30, 3)).quantize(16),
    "RGB": Image.fromarray(noise(30, 20, 3)),
    "RGBA": Image.fromarray(noise(30, 20, 4), "RGBA"),
    "CMYK": Image.fromarray(noise(30, 20, 4), "CMYK"),
    "YCbCr": Image.fromarray(noise(30, 20, 3), "YCbCr"),
    "I;16": Image.fromarray(noise(20, 30, dtype=np.uint16)),
    "F": Image.fromarray(noise(20, 30) / np.float32(511)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_becomes_grey_or_colour(mode: str, channels: int) -> None:
    image = MODES[mode]
    found = preprocess(image, described(channels))
    assert found.shape == (channels, PIXELS, PIXELS)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.01
    if channels == (1 if mode in ("1", "L", "LA", "I;16", "F") else 3):  # as a dataset of such images has them
        assert np.abs(trained_on(image, channels) - found).max() < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_file_is_trained_on_as_it_is_predicted(tmp_path: Path, mode: str, channels: int) -> None:
    trained = trained_on(MODES[mode], channels, tmp_path)
    with Image.open(tmp_path / "image.png") as image:
        assert np.abs(trained - preprocess(image, described(channels))).max() < 1e-6


def test_transparency_is_a_channel_where_the_network_has_one() -> None:
    image = MODES["RGBA"].resize((PIXELS, PIXELS))
    assert np.array_equal(preprocess(image, described(4)), np.asarray(image).transpose(2, 0, 1) / np.float32(255))
    for other, channels in ((MODES["RGB"], 4), (MODES["RGB"], 2), (MODES["RGB"], 13), (noise(8, 8, 4), 3)):
        with pytest.raises(UserError, match="channels"):
            preprocess(other, described(channels))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photo_is_read_as_viewers_show_it(orientation: int, suffix: str, tmp_path: Path) -> None:
    """How it is stored for each orientation is from the EXIF standard: which side the first row and column are."""
    shown = np.zeros((32, 32, 3), np.uint8)
    shown[:16] = 200  # sky above
    shown[:, :16] += 50  # and a house at the left
    stored = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.swapaxes(0, 1),
        6: np.rot90(shown, 1), 7: np.rot90(shown, 2).swapaxes(0, 1), 8: np.rot90(shown, -1),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo", suffix, exif=exif)
    files = Files([tmp_path / "photo"], torch.zeros(1, dtype=torch.int64), Square(32), 0)
    trained = next(files.stream([torch.tensor([0])]))[0][0].permute(1, 2, 0).numpy()
    with Image.open(tmp_path / "photo") as opened:
        predicted = preprocess(opened, described(3, 32)).transpose(1, 2, 0) * 255
    with Image.open(tmp_path / "photo") as opened:
        arrays, _ = in_memory_arrays([([opened] * 2, [0, 1]), None, ([opened], [0])], None)
    for found in (trained, predicted, arrays["train"][0][0]):
        assert np.abs(found.astype(float)[4:12, 4:12] - shown[4:12, 4:12]).max() < 16
        assert np.abs(found.astype(float)[20:28, 4:12] - shown[20:28, 4:12]).max() < 16
        assert np.abs(found.astype(float)[4:12, 20:28] - shown[4:12, 20:28]).max() < 16


def test_a_damaged_orientation_is_none() -> None:
    for junk in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"):
        file = io.BytesIO()
        Image.fromarray(noise(8, 12, 3)).save(file, "JPEG", exif=junk)
        assert upright(Image.open(file)).size == (12, 8)


def test_sixteen_bits_keep_more_than_256_levels(tmp_path: Path) -> None:
    """A scan of 12 bits in a file of 16, which is 16 levels of 256."""
    scan = np.arange(PIXELS**2, dtype=np.uint16).reshape(PIXELS, PIXELS) * 16
    trained = trained_on(Image.fromarray(scan), 1, tmp_path)
    assert len(np.unique(trained)) == PIXELS**2
    assert trained.max() == pytest.approx(255 * 16 / 65535)
    assert np.array_equal(preprocess(scan, described(1)), trained)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_read_from_any_format(suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, PIXELS**2).astype(np.uint16).reshape(PIXELS, PIXELS)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    with Image.open(tmp_path / f"ramp.{suffix}") as image:
        assert np.abs(preprocess(image, described(1))[0] - ramp / 65535).max() < 1e-6


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (Image.fromarray(np.full((9, 9), 70000, np.int32)), "32-bit numbers from 70000 to 70000"),
        (Image.fromarray(np.full((9, 9), 200, np.int32)), "32-bit numbers from 200 to 200"),
        (Image.fromarray(np.full((9, 9), 2.5, np.float32)), "float32 from 2.5 to 2.5"),
        (Image.fromarray(np.full((9, 9), np.nan, np.float32)), "float32 from nan"),
        (np.full((9, 9), 200.0), "divide them by 255"),
        (np.full((9, 9), 200), "images.astype('uint8')"),
        (np.full((9, 9), 2000), "images.astype('uint16')"),
        (np.full((9, 9), -0.5), "before they are normalised"),
        (np.full((3, 9, 3), 0, np.uint8), "axes can be told apart"),
        (np.full((9,), 0, np.uint8), r"of shape (9,)"),
        (np.full((9, 9), "a"), "pixels of type"),
    ],
)
def test_a_range_or_a_shape_that_is_not_known_is_refused(image: Image.Image | np.ndarray, part: str) -> None:
    for read_it in (lambda: preprocess(image, described(3), "my image"), lambda: trained_on(image, 3)):
        with pytest.raises(UserError) as refusal:
            read_it()
        assert part in str(refusal.value)


def test_a_float_image_that_cannot_be_is_named_before_training(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for name in ("0.tif", "1.tif"):
                Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / split / label / name)
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=8, workers=0)
    assert next(load_data(config, 0).test.pixels.stream([torch.tensor([0])]))[0].unique().tolist() == [127.5]
    Image.fromarray(np.full((9, 9), 50.0, np.float32)).save(tmp_path / "test" / "b" / "0.tif")
    with pytest.raises(UserError, match=r"test/b/0\.tif with float32 from 50 to 50"):
        load_data(config, 0)


def test_the_middle_of_oblong_images() -> None:
    """What lies at the sides is seen nowhere, in the middle everywhere."""
    image = np.zeros((28, 84), np.uint8)
    image[:, :28] = image[:, 56:] = 255
    assert square(image, Square(14))[:, 1:-1].max() == 0
    assert read(Image.fromarray(image), 1, Square(14), "")[:, 1:-1].max() == 0
    assert square(image.T, Square(14))[1:-1].max() == 0
    image[:, 28:56] = 100
    assert square(image, Square(28)).min() == square(image, Square(28)).max() == 100


def test_several_images_are_told_from_one() -> None:
    one = Image.new("L", (9, 9))
    assert _several("a.png", 1) == ["a.png"]
    assert _several(one, 1) == [one]
    assert len(_several(np.zeros((5, 9, 9)), 1)) == len(_several(np.zeros((5, 9, 9)), 3)) == 5
    assert len(_several(torch.zeros(5, 3, 9, 9), 3)) == 5
    for shape, channels in (((9, 9), 1), ((9, 9, 1), 1), ((9, 9, 3), 3), ((3, 9, 9), 3)):
        with pytest.raises(UserError, match=r"\[image\]"):
            _several(np.zeros(shape), channels)
