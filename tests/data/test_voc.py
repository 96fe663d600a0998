"""Pascal VOC's folders as users have them: each layout of splits, boxes that fit their images, and mistakes by name."""

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.boxes import CLASS, DIFFICULT, FLAG, PADDING
from compress.data.dataset import NO_LABEL, Data
from compress.utils.errors import UserError
from tests.data.drawings import HEIGHT, WIDTH, write_image

BCCD = Path(__file__).resolve().parents[3] / "shared" / "datasets" / "bccd.zip"
SIZE = 32  # pixels a side, as the network reads them
CATS = tuple(f"c{number}" for number in range(6))
DOGS = tuple(f"d{number}" for number in range(6))

Object = tuple[str, Sequence[object], int]  # class, box, difficult


def write_xml(
    folder: Path, key: str, objects: Sequence[Object], size: tuple[int, int] | None = (WIDTH, HEIGHT)
) -> None:
    corners = ("xmin", "ymin", "xmax", "ymax")
    parts = []
    for name, box, difficult in objects:
        bounds = "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
        parts.append(f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{bounds}</bndbox></object>")
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    (folder / f"{key}.xml").write_text(f"<annotation>{sides}{''.join(parts)}</annotation>")


def write_lists(root: Path, **lists: Sequence[str]) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for name, keys in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{key}\n" for key in keys))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images with a cat and six with a dog, without lists."""
    images, annotations = tmp_path / "JPEGImages", tmp_path / "Annotations"
    images.mkdir()
    annotations.mkdir()
    for key in (*CATS, *DOGS):
        write_image(images / f"{key}.png")
        write_xml(annotations, key, [("cat" if key in CATS else "dog", (10, 5, 30, 15), 0)])
    return tmp_path


def load(root: Path, seed: int = 0, **settings: object) -> Data:
    settings = {"task": "detection", "image_size": SIZE, "workers": 0, "batch_size": 4} | settings
    return load_data(DataConfig(name="voc", root=str(root), **settings), seed)


@pytest.mark.parametrize(
    ("lists", "sizes", "val_from"),
    [
        ({"train": 6, "val": 3, "test": 3}, (6, 3, 3), "own"),
        ({"train": 6, "val": 2, "trainval": 8, "test": 4}, (6, 2, 4), "own"),
        ({"train": 8, "test": 4}, (6, 2, 4), "train"),
        ({"trainval": 8, "test": 4}, (6, 2, 4), "train"),
        ({"train": 8, "val": 4}, (6, 2, 4), "train"),
        ({"train": 8, "val": 4, "trainval": 12}, (6, 2, 4), "train"),
        ({"train": 12}, (8, 2, 2), "train"),
        ({}, (8, 2, 2), "train"),
    ],
)
def test_each_layout_of_splits(root: Path, lists: dict[str, int], sizes: tuple[int, int, int], val_from: str) -> None:
    """Lists take cats and dogs in turn, trainval from the start, as train does."""
    keys = [key for pair in zip(CATS, DOGS, strict=True) for key in pair]
    at, chosen = 0, {}
    for name, count in lists.items():
        start = 0 if name == "trainval" else at
        chosen[name] = [f"{key} {1 - 2 * (number % 2)}" for number, key in enumerate(keys[start : start + count])]
        at = start + count
    if lists:
        write_lists(root, **chosen, cat_train=["no list of images"])
    data = load(root, val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert data.val_from == val_from
    assert data.classes == ["cat", "dog"]
    assert data.resize == "stretch"
    assert data.labelled


def test_val_that_serves_as_test_is_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lists(root, train=(*CATS[:4], *DOGS[:4]), val=(CATS[4], DOGS[4]))
    with caplog.at_level(logging.INFO, "compress"):
        load(root)
    assert "val serves as test, and validation is held out of train" in caplog.text
    assert "2 images are in no split (JPEGImages/c5.png, JPEGImages/d5.png)" in caplog.text


def test_a_drawn_test_split_is_the_same_for_each_seed(root: Path) -> None:
    one, other = load(root, 0), load(root, 1)
    assert one.test.pixels.pixels.paths == other.test.pixels.pixels.paths
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == load(root, 0).fingerprint
    assert not {path.name for path in one.test.pixels.pixels.paths} & {path.name for path in one.train.pixels.paths}
    assert len(load(root, test_fraction=0.5).test) == 6


@pytest.mark.parametrize("folder", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_folder_is_found_whatever_the_case(
    root: Path, tmp_path_factory: pytest.TempPathFactory, folder: str
) -> None:
    outer = tmp_path_factory.mktemp("outer") / "data"
    (outer / folder).parent.mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").rename(root / "Images")
    (root / "Annotations").rename(root / "annotations")
    root.rename(outer / folder)
    assert load(outer).sizes == {"train": 8, "val": 2, "test": 2}


def test_boxes_are_stretched_with_their_images(root: Path) -> None:
    data = load(root)
    wanted = torch.tensor([10 * SIZE / WIDTH, 5 * SIZE / HEIGHT, 30 * SIZE / WIDTH, 15 * SIZE / HEIGHT])
    for images, labels in data.test.pixels.stream([torch.arange(2)]):
        assert images.shape == (2, 3, SIZE, SIZE)
        for image, (target,) in zip(images, labels, strict=True):
            torch.testing.assert_close(target[1:5], wanted)
            rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            torch.testing.assert_close(found, wanted, atol=1, rtol=0)
    assert data.test.labels[..., CLASS].flatten().tolist() == [0, 1]


def test_rows_are_padded_and_difficult_objects_flagged(root: Path) -> None:
    objects = [("cat", (0, 0, 10, 10), 0), ("dog", (5, 5, 40, 20), 1)]
    write_xml(root / "Annotations", "c0", objects)
    write_xml(root / "Annotations", "c1", [])
    write_lists(root, train=CATS[:2], test=(CATS[2], DOGS[2]), val=(CATS[3], DOGS[3]))
    labels = load(root).train.labels
    assert labels.shape == (2, 2, 6)
    assert labels.dtype == torch.float32
    assert labels[0, :, FLAG].tolist() == [0, DIFFICULT]
    assert (labels[1] == PADDING).all()


def test_boxes_outside_are_clipped_or_left_out_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = [
        ("cat", (-3, 2.5, 20, 25), 0),  # clipped
        ("cat", (45, 2, 60, 9), 0),  # outside
        ("cat", (20, 5, 20.5, 15), 0),  # too narrow
        ("cat", (30, 5, 20, 15), 0),  # its corners are exchanged
    ]
    write_xml(root / "Annotations", "c0", objects)
    write_lists(root, train=(CATS[0], DOGS[0]), val=(CATS[1], DOGS[1]), test=(CATS[2], DOGS[2]))
    with caplog.at_level(logging.WARNING, "compress"):
        labels = load(root, image_size=WIDTH).train.labels
    assert labels[0].tolist() == [[0, 0, 5, 20, 40, 0]]
    assert "partly outside their image, clipped: 1 (c0.xml: [-3, 2.5, 20, 25] of cat)" in caplog.text
    assert "left out: 3 (" in caplog.text
    assert "c0.xml: [45, 2, 60, 9] of cat; c0.xml: [20, 5, 20.5, 15] of cat" in caplog.text


def test_train_may_be_unlabelled(root: Path) -> None:
    for key in (*CATS[:4], *DOGS[:4]):
        (root / "Annotations" / f"{key}.xml").unlink()
    write_lists(root, train=(*CATS[:4], *DOGS[:4]), test=(*CATS[4:], *DOGS[4:]))
    data = load(root)
    assert data.classes == ["cat", "dog"]
    assert not data.labelled
    assert (data.train.labels == NO_LABEL).all()
    assert (data.test.labels[..., CLASS] >= 0).any()


def test_an_image_is_upright_before_its_size_is_compared(root: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "JPEGImages" / "c0.png", exif=exif)
    load(root)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / "c0.png", exif=exif)
    with pytest.raises(UserError, match=r"c0\.png, 20x40 pixels upright.*expected 40x20.*c0\.xml.*EXIF"):
        load(root)


def test_a_size_may_be_missing(root: Path) -> None:
    write_xml(root / "Annotations", "c0", [("cat", (10, 5, 30, 15), 0)], None)
    assert load(root).sizes["train"] == 8


def test_the_fingerprint_sees_a_pixel_and_a_box(root: Path) -> None:
    plain = load(root).fingerprint
    write_image(root / "JPEGImages" / "c0.png", (10, 5, 30, 16))
    changed = load(root).fingerprint
    write_xml(root / "Annotations", "c0", [("cat", (10, 5, 30, 16), 0)])
    assert len({plain, changed, load(root).fingerprint}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", r"c0\.xml: no element found"),
        ("", r"c0\.xml: no element found"),
        ("<annotation><object/></annotation>", r"c0\.xml: object 1: xmin None"),
    ],
)
def test_a_broken_annotation_is_named(root: Path, content: str, message: str) -> None:
    (root / "Annotations" / "c0.xml").write_text(content)
    with pytest.raises(UserError, match=message):
        load(root)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "ten", ""])
def test_a_coordinate_that_is_no_number_is_named(root: Path, value: str) -> None:
    write_xml(root / "Annotations", "c0", [("cat", (0, 0, 5, 5), 0), ("cat", (10, 5, value, 15), 0)])
    with pytest.raises(UserError, match=rf"c0\.xml: object 2: xmin 10, ymin 5, xmax {value}, ymax 15"):
        load(root)


def test_an_object_without_a_class_is_named(root: Path) -> None:
    write_xml(root / "Annotations", "c0", [(" ", (0, 0, 5, 5), 0)])
    with pytest.raises(UserError, match=r"c0\.xml: object 1 without a name"):
        load(root)


@pytest.mark.parametrize("lists", [True, False])
def test_a_missing_file_is_named(root: Path, lists: bool) -> None:
    if lists:
        write_lists(root, train=(*CATS[:4], *DOGS[:4]), test=(*CATS[4:], *DOGS[4:]))
    image = root / "JPEGImages" / "c0.png"
    image.rename(root / "away")
    with pytest.raises(UserError, match=r"c0\.xml in .*(train\.txt|Annotations), without an image"):
        load(root)
    (root / "away").rename(image)
    (root / "Annotations" / "c0.xml").unlink()
    with pytest.raises(UserError, match=r"c0\.png in .*, without c0\.xml"):
        load(root)


def test_a_class_that_train_lacks_is_named(root: Path) -> None:
    write_xml(root / "Annotations", "c5", [("cats", (0, 0, 5, 5), 0)])
    write_lists(root, train=(*CATS[:4], *DOGS[:4]), test=(*CATS[4:], *DOGS[4:]))
    with pytest.raises(UserError, match=r"c5\.xml: class cats in test; expected one of train's: cat, dog.*mean cat"):
        load(root)


@pytest.mark.parametrize(
    ("kind", "message"), [([], r"test\.txt: no box in test"), ([1], "no box in test.*neither diffi")]
)
def test_a_split_without_a_box_to_score_is_refused(root: Path, kind: list[int], message: str) -> None:
    for key in CATS[4:]:
        write_xml(root / "Annotations", key, [("cat", (0, 0, 5, 5), difficult) for difficult in kind])
    write_lists(root, train=(*CATS[:4], *DOGS[:4]), test=CATS[4:])
    with pytest.raises(UserError, match=message):
        load(root)


def test_an_image_in_two_splits_is_refused(root: Path) -> None:
    write_lists(root, train=CATS[:4], test=CATS[3:])
    with pytest.raises(UserError, match=r"c3\.png in .*train\.txt and in .*test\.txt"):
        load(root)


def test_lists_without_train_are_refused(root: Path) -> None:
    write_lists(root, val=CATS, test=DOGS)
    with pytest.raises(UserError, match=r"with val\.txt, test\.txt; expected train\.txt or trainval\.txt"):
        load(root)


def test_an_empty_list_is_refused(root: Path) -> None:
    write_lists(root, train=CATS, test=())
    with pytest.raises(UserError, match="no images in test"):
        load(root)


def test_two_images_of_one_name_are_refused(root: Path) -> None:
    write_image(root / "JPEGImages" / "c0.bmp")
    with pytest.raises(UserError, match=r"c0\.bmp and .*c0\.png; expected one file of each name"):
        load(root)


def test_two_data_sets_below_the_root_are_refused(tmp_path: Path) -> None:
    for name in ("VOC2007", "VOC2012"):
        for folder in ("JPEGImages", "Annotations"):
            (tmp_path / name / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=r"with 2 data sets: .*VOC2007, .*VOC2012"):
        load(tmp_path)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="with train; expected folders JPEGImages and Annotations"):
        load(tmp_path)


@pytest.mark.skipif(not BCCD.is_file(), reason=f"{BCCD} is not there: it is no part of the project")
def test_blood_cells_are_read_as_published(tmp_path: Path) -> None:
    with zipfile.ZipFile(BCCD) as archive:
        archive.extractall(tmp_path)
    data = load(tmp_path, image_size=320)
    assert data.sizes == {"train": 205, "val": 87, "test": 72}
    assert data.classes == ["Platelets", "RBC", "WBC"]
    numbers = torch.cat([split.labels[..., CLASS].flatten() for split in (data.train, data.val, data.test)])
    assert torch.bincount(numbers[numbers >= 0].long()).tolist() == [361, 4153, 372]  # 4,888 less 2 without area
