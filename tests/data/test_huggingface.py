"""Data sets that `datasets` saved: the same images as in folders, names of classes, and what is missing is named."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.utils.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of datasets itself


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def rows(numbers: range, image: str = "image", label: str = "label") -> Any:
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog", "emu"])})
    content = {image: [{"bytes": png(at), "path": None} for at in numbers], label: [at % 3 for at in numbers]}
    return datasets.Dataset.from_dict(content, features=features)


def saved(folder: Path, **splits: Any) -> DataConfig:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return DataConfig("huggingface", str(folder), image_size=8, batch_size=8, workers=0, val_fraction=0.25)


def test_it_is_the_same_data_as_in_folders(tmp_path: Path) -> None:
    config = saved(tmp_path / "saved", train=rows(range(24)), test=rows(range(24, 36)))
    stored = load_data(config, 0, tmp_path / "manifests")
    for at in range(36):
        place = tmp_path / "tree" / ("train" if at < 24 else "test") / ("cat", "dog", "emu")[at % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{at:02}.png").write_bytes(png(at))
    folders = load_data(replace(config, name="imagefolder", root=str(tmp_path / "tree")), 0)
    assert stored.classes == folders.classes
    assert stored.sizes == folders.sizes
    images = {at: np.asarray(Image.open(io.BytesIO(png(at)))) for at in range(24, 36)}
    for batch, labels in stored.test.pixels.stream([stored.test.index]):
        for at, (pixels, label) in enumerate(zip(batch, labels.tolist(), strict=True), 24):
            assert (pixels.permute(1, 2, 0).numpy() == images[at]).all()
            assert label == at % 3
    assert load_data(config, 0, tmp_path / "manifests").fingerprint == stored.fingerprint


def test_columns_of_other_names_and_a_validation_split(tmp_path: Path) -> None:
    starts = {"train": 0, "validation": 9, "test": 18}
    parts = {name: rows(range(at, at + 9), "img", "fine_label") for name, at in starts.items()}
    config = replace(saved(tmp_path, **parts), columns=["label=fine_label"])
    data = load_data(config, 0)
    assert data.sizes == {"train": 9, "val": 9, "test": 9}
    assert data.val_from == "own"


def test_the_fingerprint_changes_with_an_image(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", train=rows(range(24)), test=rows(range(24, 36)))
    other = saved(tmp_path / "other", train=rows(range(1, 25)), test=rows(range(24, 36)))
    assert load_data(one, 0).fingerprint != load_data(other, 0).fingerprint


@pytest.mark.parametrize("external", [False, True])
def test_an_image_that_is_not_stored_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    content = rows(range(6)).to_dict()
    content["image"][2] = {"bytes": None, "path": str(tmp_path / "a.png")} if external else None
    train = datasets.Dataset.from_dict(content, features=rows(range(1)).features)
    monkeypatch.setattr(datasets.Image, "embed_storage", lambda self, storage, **_: storage)  # as older versions save
    config = saved(tmp_path / "saved", train=train, test=rows(range(6)))
    with pytest.raises(
        UserError, match=r"row 2: an image in another file, .*a\.png" if external else "row 2: no image"
    ):
        load_data(config, 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["img=image"], r"data\.columns with img=image"),
        (["label=label", "label=other"], r"data\.columns with label=other"),
        (["image=label"], "one column with the image"),
    ],
)
def test_an_entry_that_names_no_column_is_refused(tmp_path: Path, columns: list[str], message: str) -> None:
    config = replace(saved(tmp_path, train=rows(range(6)), test=rows(range(6))), columns=columns)
    with pytest.raises(UserError, match=message):
        load_data(config, 0)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    config = saved(tmp_path / "train", train=rows(range(6)))
    with pytest.raises(UserError, match="expected splits called train and test"):
        load_data(config, 0)
    rows(range(6)).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(UserError, match="a data set without splits"):
        load_data(replace(config, root=str(tmp_path / "one")), 0)
    with pytest.raises(UserError, match="a folder that save_to_disk wrote"):
        load_data(replace(config, root=str(tmp_path)), 0)
    other = saved(tmp_path / "other", train=rows(range(6), label="kind"), test=rows(range(6), label="kind"))
    with pytest.raises(UserError, match="one column with the label"):
        load_data(other, 0)
