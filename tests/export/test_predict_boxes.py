"""Finding objects with a run's file: boxes in pixels of the image that was given, as data, lines and drawings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageColor

from compress.export.draw_boxes import draw_boxes, drawn_paths
from compress.export.predict import Detection, Detector
from compress.launch.commands.predict import main
from compress.utils.class_colours import class_colour
from compress.utils.errors import UserError
from compress.utils.files import ONNX
from tests.export.tiny_detector import BOXES, CLASSES, SIDE

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (153, 153, 153)


def saved(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (160, 96)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return str(path)


def loaded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def in_image(box: list[float], width: int, height: int) -> list[float]:
    return [at * side / SIDE for at, side in zip(box, (width, height, width, height), strict=True)]


def test_boxes_are_in_pixels_of_the_image(detector: Detector, tmp_path: Path) -> None:
    """In each form of an image that is not square."""
    path = saved(tmp_path / "red.png", RED)
    red = loaded(Path(path))
    forms = [path, Path(path), red, np.asarray(red), np.asarray(red).transpose(2, 0, 1).astype(np.float32) / 255]
    first, *others = detector.predict(forms)
    assert [one.label for one in first] == ["red", "red"]
    assert [one.score for one in first] == [1, 0.5]  # the lowest score is among them
    for one, box in zip(first, BOXES, strict=True):
        assert one.box == pytest.approx(in_image(box, 160, 96))
    assert all(other == first for other in others)


@pytest.mark.parametrize(("orientation", "size"), [(1, (160, 96)), (6, (96, 160)), (8, (96, 160)), (3, (160, 96))])
def test_boxes_are_in_pixels_of_the_upright_image(
    detector: Detector, tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (160, 96), RED).save(path, exif=exif)
    of_file, of_image = detector.predict([path, loaded(path)], 0.6)
    assert of_file == of_image
    assert of_file[0].box == pytest.approx(in_image(BOXES[0], *size))
    assert main([str(detector.path.parent), str(path), "--draw", str(tmp_path / "drawn")]) == 0
    assert loaded(tmp_path / "drawn" / "turned.jpg").size == size


def test_the_score_decides_and_the_surest_comes_first(detector: Detector) -> None:
    image = Image.new("RGB", (20, 20), (204, 0, 230))
    assert [one.label for one in detector.predict([image], 0.85)[0]] == ["blue"]
    scores = [one.score for one in detector.predict([image], 0.1)[0]]
    assert scores == sorted(scores, reverse=True) == pytest.approx([230 / 255, 0.8, 115 / 255, 0.4], abs=1e-5)
    assert detector.predict([image], 1.0) == [[]]
    with pytest.raises(UserError, match="from 0 to 1"):
        detector.predict([image], 50)


def test_more_images_than_a_batch(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.export.predict.BATCH", 2)
    images = [Image.new("RGB", (10 + width, 20), RED) for width in range(5)]
    found = detector.predict(images, 0.6)
    assert [one.box[2] for (one,) in found] == pytest.approx([(10 + width) * 24 / SIDE for width in range(5)])


def test_a_line_for_each_object(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red, grey = saved(tmp_path / "red.png", RED), saved(tmp_path / "none.png", (9, 9, 9))
    assert main([str(run), red, grey, "--min-score", "0.3"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"with {run / '01_teacher' / ONNX}"
    assert [line.split() for line in lines[:2]] == [
        [red, "red", "1.00", "40", "12", "120", "60"],
        [red, "red", "0.50", "0", "72", "160", "96"],
    ]
    assert lines[2].split(maxsplit=1) == [grey, "no object with a score of 0.3 or more"]


def test_a_drawing_has_the_colour_of_the_class_at_the_edge(run: Path, tmp_path: Path) -> None:
    names = {"red": RED, "blue": BLUE}
    images = [saved(tmp_path / f"{name}.png", color) for name, color in names.items()]
    assert main([str(run), *images, "--draw", str(tmp_path / "deep" / "drawn"), "--min-score", "0.6"]) == 0
    for name, color in names.items():
        drawn = loaded(tmp_path / "deep" / "drawn" / f"{name}.png")
        assert drawn.size == (160, 96)
        edge = ImageColor.getrgb(class_colour(CLASSES.index(name)))
        assert {drawn.getpixel(at) for at in ((40, 40), (119, 40), (60, 59), (119, 12))} == {edge}
        assert {drawn.getpixel(at) for at in ((38, 40), (121, 40), (60, 61), (80, 40), (150, 90))} == {color}


@pytest.mark.parametrize("box", [(0, 0, 64, 48), (60, 40, 64, 48), (63.6, 47.7, 64, 48), (50, 5, 50, 5)])
def test_tags_stay_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    """The tag of a box in the middle is found whole."""

    def drawn(box: tuple[float, float, float, float]) -> np.ndarray:
        picture = Image.new("RGB", (64, 48), GREY)
        draw_boxes(picture, [Detection("a", 0.5, box)], ["a"])
        return np.asarray(picture)

    middle = drawn((10, 30, 20, 40))
    right = 10 + int((middle[14, 10:] == ImageColor.getrgb(class_colour(0))).all(1).argmin())
    tag = middle[14:30, 10:right]
    assert tag.shape[1] > 30
    assert (np.lib.stride_tricks.sliding_window_view(drawn(box), tag.shape) == tag).all((3, 4, 5)).any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_all_modes_are_drawn(run: Path, tmp_path: Path, mode: str) -> None:
    """As PNG, where their own format is not that of a drawing."""
    grey = np.full((30, 40), 40000, np.uint16)
    image = Image.fromarray(grey) if mode == "I;16" else Image.new("RGB", (40, 30), GREY).convert(mode)
    image.save(tmp_path / "image.tif")
    assert main([str(run), str(tmp_path / "image.tif"), "--draw", str(tmp_path / "drawn")]) == 0
    drawn = loaded(tmp_path / "drawn" / "image.tif.png")
    assert (drawn.size, drawn.mode) == ((40, 30), "RGB")
    assert np.asarray(drawn).mean() == pytest.approx(153, abs=60)


def test_images_of_one_name_are_drawn_apart(run: Path, tmp_path: Path) -> None:
    images = [
        saved(tmp_path / "one" / "cell.png", RED),
        saved(tmp_path / "two" / "cell.png", BLUE),
        saved(tmp_path / "three" / "cell_2.png", RED),
    ]
    assert main([str(run), *images, "--draw", str(tmp_path / "drawn")]) == 0
    drawn = {path.name: loaded(path).getpixel((0, 40)) for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"cell.png": RED, "cell_2.png": BLUE, "cell_2_2.png": RED}


def test_no_image_is_drawn_over(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = saved(tmp_path / "red.png", RED)
    content = Path(image).read_bytes()
    assert main([str(run), image, "--draw", str(tmp_path)]) == 2
    assert "one of the images" in capsys.readouterr().err
    assert Path(image).read_bytes() == content
    with pytest.raises(UserError, match="another folder"):
        drawn_paths(["a/cell.png", "b/cell.png"], Path("b/../b"))


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red = saved(tmp_path / "red.png", RED)
    for arguments, part in (
        ([], "no image"),
        ([red, "--video", "0"], "both images and --video"),
        ([red, "--min-score", "2"], "from 0 to 1"),
        ([red, "--draw", red], "a folder that can be written"),
    ):
        assert main([str(run), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("compress: received")
        assert part in line


def test_neither_torch_nor_opencv_is_imported(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from compress.launch.commands.predict import main\n"
        f"main([{str(run)!r}, {saved(tmp_path / 'red.png', RED)!r}, '--draw', {str(tmp_path / 'drawn')!r}])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'torchvision', 'hydra', 'onnx', 'cv2'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
