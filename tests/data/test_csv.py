"""Tables of images: the same splits and errors as folders, labels in columns or in one, and no group in two splits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.data.csv_file import csv_file
from compress.data.dataset import Data
from compress.data.groups import shared_group, split_by_group
from compress.utils.errors import UserError


def image(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """36 images below `images`."""
    (tmp_path / "images").mkdir()
    for number in range(36):
        image(number).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path


def write(path: Path, header: str, rows: Sequence[str], encoding: str = "utf-8") -> DataConfig:
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return DataConfig("csv", str(path), image_size=8, batch_size=8, workers=0, val_fraction=0.25)


def rows(count: int = 24, split: bool = True) -> list[str]:
    """Classes take turns; the last third is test."""
    names = ("cat", "dog")
    last = lambda at: f",{'test' if at >= count * 2 // 3 else 'train'}" if split else ""
    return [f"images/{at:02}.png,{names[at % 2]}{last(at)}" for at in range(count)]


def pixels(data: Data) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([images for images, _ in getattr(data, name).batches()]) for name in ("train", "val", "test")
    }


def test_it_is_the_same_data_as_in_folders(folder: Path) -> None:
    table = load_data(write(folder / "all.csv", "path,class,split", rows()), 0)
    for at, row in enumerate(rows()):
        path, label, split = row.split(",")
        place = folder / "tree" / split / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{at:02}.png").write_bytes((folder / path).read_bytes())
    config = DataConfig("imagefolder", str(folder / "tree"), image_size=8, batch_size=8, workers=0, val_fraction=0.25)
    folders = load_data(config, 0)
    assert table.classes == folders.classes == ["cat", "dog"]
    assert table.sizes == folders.sizes
    for split in ("train", "val", "test"):
        ours, theirs = (
            sorted(zip(part.labels.tolist(), images.flatten(1).tolist(), strict=True))
            for part, images in ((getattr(data, split), pixels(data)[split]) for data in (table, folders))
        )
        if split == "test":
            assert ours == theirs
        assert [label for label, _ in ours] == [label for label, _ in theirs]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_byte_order_marks(folder: Path, separator: str, encoding: str) -> None:
    plain = load_data(write(folder / "plain.csv", "image,label,split", rows()), 0)
    lines = [row.replace(",", separator) for row in rows()]
    other = load_data(write(folder / "other.csv", separator.join(["Image", "Label", "Split"]), lines, encoding), 0)
    assert other.fingerprint == plain.fingerprint


def test_a_table_a_split(folder: Path) -> None:
    one = load_data(write(folder / "one.csv", "image,label,split", rows()), 0)
    place = folder / "tables"
    place.mkdir()
    for split in ("train", "test"):
        write(place / f"{split}.csv", "image,label", [row.rpartition(",")[0] for row in rows() if row.endswith(split)])
    config = DataConfig("csv", str(place), images=str(folder), image_size=8, workers=0, val_fraction=0.25)
    several = load_data(config, 0)
    assert several.sizes == one.sizes
    assert several.fingerprint == one.fingerprint


def test_numbers_are_classes_by_their_value(folder: Path) -> None:
    lines = [f"images/{at:02}.png,{at % 12}" for at in range(36)]
    data = load_data(write(folder / "all.csv", "image,label", lines), 0)
    assert data.classes == [str(number) for number in range(12)]


def test_without_splits_the_test_images_are_the_same_for_each_seed(folder: Path) -> None:
    config = write(folder / "all.csv", "image,label", rows(split=False))
    config = replace(config, mean=[0.5] * 3, std=[0.5] * 3)
    first, second = load_data(config, 0), load_data(config, 1)
    assert len(first.test) == len(second.test) == 4
    assert torch.equal(pixels(first)["test"], pixels(second)["test"])
    assert not torch.equal(pixels(first)["val"], pixels(second)["val"])


@pytest.mark.parametrize("given", [True, False])
def test_no_group_is_in_two_splits(folder: Path, given: bool) -> None:
    patients = [at // 4 for at in range(24)]
    lines = [f"{row},{patient}" for row, patient in zip(rows(split=given), patients, strict=True)]
    header = "image,label,split,patient_id" if given else "image,label,patient_id"
    config = write(folder / "all.csv", header, lines)
    (files, _, _), data = csv_file(config, None), load_data(config, 0)
    places = {"train": ("train", data.train), "val": ("train", data.val), "test": ("test", data.test)}
    seen = {name: set(files[source].groups[split.index].tolist()) for name, (source, split) in places.items()}
    assert all(seen.values())
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_a_group_in_two_splits_is_refused(folder: Path) -> None:
    lines = [f"{row},{at % 5}" for at, row in enumerate(rows())]
    with pytest.raises(UserError, match="the group 0 in train and in test"):
        load_data(write(folder / "all.csv", "image,label,split,patient", lines), 0)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_split_by_share_and_stratum(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    strata = torch.randint(0, 3, (400,), generator=generator)
    groups = torch.randint(0, 90, (400,), generator=generator)
    kept, held_out = split_by_group(strata, groups, 0.2, seed)
    assert sorted(torch.cat([kept, held_out]).tolist()) == list(range(400))
    assert shared_group({"kept": groups[kept], "held out": groups[held_out]}) is None
    shares = torch.bincount(strata[held_out], minlength=3) / torch.bincount(strata, minlength=3)
    assert ((shares > 0.15) & (shares < 0.25)).all()
    assert torch.equal(held_out, split_by_group(strata, groups, 0.2, seed)[1])
    assert not torch.equal(held_out, split_by_group(strata, groups, 0.2, seed + 1)[1])


def test_small_classes_are_held_out_by_group_too() -> None:
    groups = torch.arange(400)
    kept, held_out = split_by_group(groups // 4, groups, 0.1, 0)  # 0.4 images of each class are wanted
    assert len(held_out) == 40
    assert len((kept // 4).unique()) == 100


def test_a_group_that_is_larger_than_what_is_wanted_is_held_out() -> None:
    images = torch.arange(800)
    kept, held_out = split_by_group(images % 2, images // 100, 0.02, 0)
    assert (len(kept), len(held_out)) == (700, 100)


@pytest.mark.parametrize("groups", [True, False])
def test_rows_of_labels_that_all_differ_are_held_out(folder: Path, groups: bool) -> None:
    lines = [f"images/{at:02}.png,{at // 2}," + ",".join(f"{at:05b}") for at in range(32)]
    config = write(folder / "all.csv", f"image,{'patient' if groups else 'age'},a,b,c,d,e", lines)
    columns = [f"label={name}" for name in "abcde"]
    data = load_data(replace(config, task="multilabel", columns=columns, test_fraction=0.25), 0)
    assert data.classes == list("abcde")
    assert 6 <= len(data.test) <= 10


def test_columns_of_two_usual_names_are_refused(folder: Path) -> None:
    lines = [f"{row},{at},{at // 2}" for at, row in enumerate(rows())]
    config = write(folder / "all.csv", "image,label,split,subject,patient_id", lines)
    with pytest.raises(UserError, match="the columns subject, patient_id for the group"):
        load_data(config, 0)
    assert load_data(replace(config, columns=["group=subject"]), 0).sizes["test"] == 8


def test_several_columns_of_labels_need_the_task(folder: Path) -> None:
    config = write(folder / "all.csv", "image,a,b", [f"images/{at:02}.png,0,1" for at in range(24)])
    with pytest.raises(
        UserError, match=r"the columns a, b for the label; expected one column, or data\.task=multilabel"
    ):
        load_data(replace(config, columns=["label=a", "label=b"]), 0)
    lines = [f"images/{at:02}.png,{at},1" for at in range(24)]
    config = write(folder / "all.csv", "image,age,b", lines)
    with pytest.raises(UserError, match=r"line 4: 2 under age.*name the columns of labels"):
        load_data(replace(config, task="multilabel"), 0)


@pytest.mark.parametrize("columns", [True, False])
def test_several_labels(folder: Path, columns: bool) -> None:
    has = [(at % 2, int(at % 3 == 0)) for at in range(24)]
    if columns:
        header, labels = "image,edema,mass,split", [f"{one},{other}" for one, other in has]
    else:
        header = "Image Index,Finding Labels,split"
        labels = ["|".join(name for name, there in zip(("edema", "mass"), row, strict=True) if there) for row in has]
    lines = [f"images/{at:02}.png,{label},{'test' if at > 15 else 'train'}" for at, label in enumerate(labels)]
    config = replace(write(folder / "all.csv", header, lines), task="multilabel")
    if not columns:
        config = replace(config, columns=["image=Image Index", "label=Finding Labels"])
    data = load_data(config, 0)
    assert data.classes == ["edema", "mass"]
    assert data.test.labels.tolist() == [list(row) for row in has[16:]]


@pytest.mark.parametrize(
    ("header", "change", "message"),
    [
        ("image,label,split", {3: "images/99.png,cat,train"}, r"line 5: .*99\.png, which is missing"),
        ("image,label,split", {3: "images/03.png,,train"}, "line 5: no label"),
        ("image,label,split", {3: ",cat,train"}, "line 5: no path"),
        ("image,label,split", {3: "images/03.png,cat,holdout"}, "line 5: 'holdout' under split"),
        ("image,label,split", {3: "images/02.png,cat,train"}, r"line 5: .*02\.png, as .*line 4"),
        ("image,label,split", {3: "./images//02.png,cat,train"}, r"line 5: .*02\.png, as .*line 4"),
        ("image,label,split", {3: "images/03.png,cat"}, "line 5: 2 values under 3 columns"),
        ("image,label,split", {3: "images/03.png,bird,test"}, "class bird in test"),
        ("image,label,label", {}, "two columns label"),
        ("image,kind,split", {}, "a column with the label of each row"),
        ("picture,label,split", {}, "a column with the image of each row"),
    ],
)
def test_a_mistake_is_named_with_its_line(folder: Path, header: str, change: dict[int, str], message: str) -> None:
    lines = rows()
    for at, row in change.items():
        lines[at] = row
    with pytest.raises(UserError, match=message):
        load_data(write(folder / "all.csv", header, lines), 0)


def test_a_named_column_that_is_missing_is_refused(folder: Path) -> None:
    config = replace(write(folder / "all.csv", "image,label,split", rows()), columns=["label=lable"])
    with pytest.raises(UserError, match=r"a column of .*: image, label, split"):
        load_data(config, 0)


def test_the_fingerprint_changes_with_a_label_a_group_and_a_pixel(folder: Path) -> None:
    lines = [f"{row},{at}" for at, row in enumerate(rows())]
    header = "image,label,split,group"
    first = load_data(write(folder / "all.csv", header, lines), 0).fingerprint
    assert load_data(write(folder / "again.csv", header, lines), 0).fingerprint == first
    swapped = [lines[0].replace("cat", "dog"), *lines[1:]]
    assert load_data(write(folder / "all.csv", header, swapped), 0).fingerprint != first
    joined = [lines[0], lines[1].rpartition(",")[0] + ",0", *lines[2:]]
    assert load_data(write(folder / "all.csv", header, joined), 0).fingerprint != first
    image(99).save(folder / "images" / "00.png")
    assert load_data(write(folder / "all.csv", header, lines), 0).fingerprint != first
