"""The Python face: a network and images in memory go through the same stages, files and cache as the command's."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compress
from compress.data.builtin import ARRAYS
from compress.data.in_memory import in_memory_arrays
from compress.launch.api import Result
from compress.methods.restore import restore_float
from compress.models.user_model import USER_MODELS
from compress.utils.errors import UserError
from compress.utils.files import MODEL, SPEC, STAGE, read_json
from tests.conftest import tiny_arrays
from tests.own_networks import Plain

OVERRIDES = [
    "data.batch_size=32", "prune.round_to=1", "prune.epochs=1", "prune.reconstruction_samples=32",
    "stages=[teacher,prune,quantize]", "quantize.mode=ptq", "quantize.calibration_samples=32",
    "measure.repetitions=3", "measure.batch_size=2", "threads=1",
]  # fmt: skip


def splits() -> tuple:
    arrays = tiny_arrays()
    train, test = ((arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "test"))
    return train, None, test


def run(network: torch.nn.Module, folder: Path, cache: Path, *overrides: str) -> Result:
    settings = [*OVERRIDES, f"cache.dir={cache}", *overrides]
    return compress.run("mobilenet_int8", model=network, data=splits(), overrides=settings, folder=folder)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return Plain(3, 1)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> Result:
    folder = tmp_path_factory.mktemp("api")
    return run(network, folder / "run", folder / "cache")


@pytest.mark.e2e
def test_the_network_is_taken_as_it_is_and_stays_as_it_was(result: Result, network: torch.nn.Module) -> None:
    saved = restore_float_as(result.folder / "01_teacher", network)
    for name, value in network.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value)
    assert [row["stage"] for row in result.summary["stages"]] == ["01_teacher", "02_prune", "03_quantize"]
    assert result.summary["stages"][1]["times_fewer_macs"] > 1.9


def restore_float_as(stage: Path, network: torch.nn.Module) -> torch.nn.Module:
    """The saved network, where the user's is known again."""
    name = read_json(stage / SPEC)["architecture"]["model"]
    USER_MODELS[name] = copy.deepcopy(network)
    try:
        return restore_float(stage)
    finally:
        del USER_MODELS[name]


@pytest.mark.e2e
def test_what_it_predicts_is_what_the_file_predicts(result: Result) -> None:
    image = tiny_arrays()["test_images"][0]
    wanted = compress.load(result.folder).predict([Image.fromarray(image)])
    assert result.predict([image]) == wanted
    assert result.predict([image[..., None]]) == wanted
    assert result.path == result.folder / "03_quantize" / "model.onnx"
    assert result.path.is_file()
    with pytest.raises(UserError, match="uint8"):
        result.predict([image.astype(np.float32)])


@pytest.mark.e2e
def test_nothing_is_left_known(result: Result) -> None:
    """A name in a stranger's model.json must not find a network that an earlier call used."""
    assert [name for name in USER_MODELS if "@" in name] == []  # tests of functions leave theirs
    assert "own" not in ARRAYS
    with pytest.raises(UserError, match="Plain@"):
        restore_float(result.folder / "01_teacher")


@pytest.mark.e2e
def test_the_same_network_is_computed_once_and_another_anew(
    result: Result, network: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = result.folder.parent / "cache"
    again = run(copy.deepcopy(network), tmp_path / "again", cache)
    for stage in ("01_teacher", "02_prune", "03_quantize"):
        records = [read_json(one.folder / stage / STAGE) for one in (result, again)]
        assert records[0]["key"] == records[1]["key"]
        assert records[0]["files"][MODEL] == records[1]["files"][MODEL]
        assert (again.folder / stage / MODEL).stat().st_nlink > 1  # linked, not computed
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.bias[0] += 1e-3
    changed = run(other, tmp_path / "other", cache, "stages=[teacher]")
    assert read_json(changed.folder / "01_teacher" / STAGE)["key"] != records[0]["inputs"]["parent"]["key"]
    assert (changed.folder / "01_teacher" / STAGE).is_file()


def test_a_network_that_does_not_fit_the_images_is_refused(tmp_path: Path) -> None:
    for wrong in (Plain(4, 1), Plain(3, 3)):
        with pytest.raises(UserError, match=r"logits \(N, 3\)"):
            run(wrong, tmp_path, tmp_path / "cache")


def test_a_mistake_in_an_override_is_told(tmp_path: Path, network: torch.nn.Module) -> None:
    with pytest.raises(UserError, match="prune"):
        run(network, tmp_path, tmp_path / "cache", "prune.ratoi=0.5")
    with pytest.raises(UserError, match="nope"):
        compress.run("nope")


class Items(torch.utils.data.Dataset):
    """A dataset with names of classes."""

    def __init__(self, items: list, classes: list[str] | None = None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> tuple:
        return self.items[at]


def test_arrays_tensors_and_datasets_are_the_same_images() -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6) % 2
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    forms = [
        (images, labels),
        (channels_first, torch.from_numpy(labels)),
        (channels_first.float() / 255, labels),
        Items([(Image.fromarray(image), int(label)) for image, label in zip(images, labels, strict=True)]),
        Items([(image.float() / 255, int(label)) for image, label in zip(channels_first, labels, strict=True)]),
    ]
    for form in forms:
        arrays, classes = in_memory_arrays((form, None, form), None)
        assert list(arrays) == ["train", "test"]
        assert classes == ["0", "1"]
        for found, expected in zip(arrays["train"], (images, labels), strict=True):
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


def test_a_datasets_classes_keep_their_names() -> None:
    items = Items([(Image.new("L", (9, 12)), 0), (Image.new("L", (16, 8)), 1)], ["cat", "dog"])
    arrays, classes = in_memory_arrays((items, items, items), 8)
    assert classes == ["cat", "dog"]
    assert arrays["val"][0].shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ([1, 2], "train, val, test"),
        ((None, None, None), "train of NoneType"),
        (((np.zeros((2, 4, 4)) - 1.0, [0, 1]), None, (np.zeros((2, 4, 4)), [0, 1])), "before they are normalised"),
        (((np.zeros((2, 4, 4), np.uint8), [0]), None, None), "mend their shapes"),
        ((Items([(Image.new("L", (9, 9)), 0), (Image.new("L", (8, 8)), 0)]), None, None), "data.image_size"),
    ],
)
def test_data_of_another_form_is_refused(data: tuple, part: str) -> None:
    with pytest.raises(UserError, match="received") as refusal:
        in_memory_arrays(data, None)
    assert part in str(refusal.value)
