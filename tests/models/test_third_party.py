"""Any image classifier of torchvision and timm by name, and the preprocessing that its published weights expect."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress.config.data_settings import DataConfig
from compress.config.schema import Config
from compress.config.stage_settings import TeacherConfig
from compress.config.validation import check
from compress.data import load_data
from compress.launch.commands import models as command
from compress.models import Architecture, build, check_model, require_model_fits
from compress.models.from_config import teacher_from_config
from compress.models.third_party import torchvision_names
from compress.pipeline.preprocessing import with_normalisation, with_preprocessing
from compress.utils.errors import UserError
from compress.utils.images import Square, center_crop, preprocess

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
META = torch.device("meta")

# One of each of torchvision's families with the smallest usual size of image; a head and a stem of every kind.
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "googlenet": 32, "inception_v3": 75, "maxvit_t": 224, "mnasnet0_5": 32, "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32, "resnext50_32x4d": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32, "swin_t": 32,
    "swin_v2_t": 32, "vgg11": 32, "vit_b_32": 64, "wide_resnet50_2": 32,
}  # fmt: skip


def logits_shape(name: str, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Of what a network for seven classes returns for two images; without values where it is built without any."""
    device = torch.device("cpu") if "regnet" in name else META
    with device, torch.no_grad():
        network = build(Architecture(name, "imagenet", shape[0], 7, shape[1])).eval()
        return tuple(network(torch.zeros(2, *shape)).shape)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_takes_the_classes_and_channels_that_are_asked_for(name: str, channels: int) -> None:
    shape = (channels, FAMILIES[name], FAMILIES[name])
    require_model_fits(f"torchvision/{name}", "teacher.model", shape, 7)
    assert logits_shape(f"torchvision/{name}", shape) == (2, 7)


@needs_timm
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout"])
def test_timms_networks_take_them_too(name: str) -> None:
    require_model_fits(f"timm/{name}", "teacher.model", (1, 64, 64), 7)
    assert logits_shape(f"timm/{name}", (1, 64, 64)) == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "part"),
    [("inception_v3", 32, "data.image_size=299"), ("vit_b_16", 40, "data.image_size=224"), ("maxvit_t", 64, "224")],
)
def test_a_size_that_a_network_does_not_take_is_refused(name: str, size: int, part: str) -> None:
    with pytest.raises(UserError, match=f"for images of {size} pixels") as refusal:
        require_model_fits(f"torchvision/{name}", "teacher.model", (3, size, size), 7)
    assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("torchvision/resnet51", "torchvision/resnet50"),
        ("torchvision/fcn_resnet50", "an image classifier of torchvision"),
        ("torchvison/resnet50", "or torchvision/NAME or timm/NAME"),
        pytest.param("timm/mobilenetv3_smal_100", "timm/mobilenetv3_small_100", marks=needs_timm),
        pytest.param("timm/resnet50.a1_in1k", "teacher.weights=a1_in1k", marks=needs_timm),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_nearest(name: str, part: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_model(name, "teacher.model")
    assert part in str(refusal.value)


def test_a_small_stem_is_refused_for_networks_as_they_were_published() -> None:
    config = TeacherConfig(model="torchvision/resnet18", stem="small")
    with pytest.raises(UserError, match=r"teacher\.stem=small with teacher\.model=torchvision/resnet18"):
        teacher_from_config(config, (3, 32, 32), 7)
    with META:
        network, architecture, _ = teacher_from_config(TeacherConfig(model="torchvision/resnet18"), (3, 32, 32), 7)
    assert network.conv1.stride == (2, 2)
    assert isinstance(network.maxpool, nn.MaxPool2d)
    assert Architecture(**vars(architecture)) == architecture  # what model.json holds builds it again


def published(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchvision fetch quarters for weights."""
    import torchvision

    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    state = torchvision.models.get_model(name, weights=None, **extra).state_dict()
    state = {key: torch.full_like(value, 0.25) if value.is_floating_point() else value for key, value in state.items()}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "densenet121", "vit_b_32", "squeezenet1_1"])
def test_published_weights_fill_all_but_the_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(name, monkeypatch)
    size = 96 if name in ("vit_b_32", "inception_v3") else None
    network = build(Architecture(f"torchvision/{name}", "imagenet", 3, 7, size), "IMAGENET1K_V1")
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all((layer.weight == 0.25).all() for layer in layers[:-1])
    assert len(layers[-1].weight) == 7
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, size or 64, size or 64)).shape == (1, 7)


def configured(data: DataConfig, model: str = "efficientnet_b0", weights: str | None = "IMAGENET1K_V1") -> Config:
    return Config(data=data, teacher=TeacherConfig(model=model, weights=weights))


@pytest.mark.parametrize(
    ("model", "weights", "expected"),
    [
        ("efficientnet_b0", "IMAGENET1K_V1", (224, 224 / 256, "bicubic")),
        ("torchvision/resnet50", "IMAGENET1K_V2", (224, 224 / 232, "bilinear")),
        ("torchvision/inception_v3", "IMAGENET1K_V1", (299, 299 / 342, "bilinear")),
        pytest.param("timm/resnet50", "a1_in1k", (224, 0.95, "bicubic"), marks=needs_timm),
        pytest.param("mobilevit_xxs", "cvnets_in1k", (256, 0.9, "bicubic"), marks=needs_timm),
        ("resnet20", None, (224, 1.0, "bilinear")),
    ],
)
def test_weights_bring_their_preprocessing(model: str, weights: str | None, expected: tuple) -> None:
    data = with_preprocessing(configured(DataConfig("imagefolder"), model, weights)).data
    assert (data.image_size, pytest.approx(data.crop_share), data.interpolation) == expected


def test_what_the_user_set_stays() -> None:
    own = DataConfig("imagefolder", image_size=64, crop_share=1.0, interpolation="box")
    assert with_preprocessing(configured(own)).data == own
    arrays = with_preprocessing(configured(DataConfig("npz"))).data
    assert (arrays.image_size, arrays.crop_share, arrays.interpolation) == (224, 1.0, "bilinear")
    with pytest.raises(UserError, match=r"data\.crop_share=0\.5 with data=npz"):
        check(DataConfig("npz", crop_share=0.5))


@pytest.mark.parametrize(("channels", "mean"), [(3, [0.485, 0.456, 0.406]), (1, [0.449])])
def test_images_are_normalised_as_the_weights_expect(channels: int, mean: list[float], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shape = (12, 8, 8, channels) if channels > 1 else (12, 8, 8)
    arrays = {f"{name}_images": generator.integers(0, 255, shape, dtype=np.uint8) for name in ("train", "test")}
    arrays |= {f"{name}_labels": np.arange(12) % 2 for name in ("train", "test")}
    np.savez(tmp_path / "x.npz", **arrays)
    config = configured(DataConfig("npz", str(tmp_path / "x.npz"), image_size=8, batch_size=4))
    data = with_normalisation(load_data(config.data, 0), config)
    assert data.mean == pytest.approx(mean, abs=1e-3)
    assert data.test.mean is data.train.mean
    config.data.mean, config.data.std = [0.5] * channels, [0.5] * channels
    assert with_normalisation(load_data(config.data, 0), config).mean == [0.5] * channels


def test_the_crop_is_that_of_torchvisions_evaluation() -> None:
    from torchvision.transforms import functional as F

    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    for share, interpolation in ((1.0, "bilinear"), (28 / 32, "bicubic")):
        resized = F.resize(image, round(28 / share), F.InterpolationMode(interpolation))
        expected = np.asarray(F.center_crop(resized, 28), np.float32)
        found = np.asarray(center_crop(image, Square(28, share, interpolation)), np.float32)
        assert np.abs(found - expected).max() <= 1
    described = {"shape": [3, 28, 28], "mean": [0.0] * 3, "std": [1.0] * 3}
    cropped = preprocess(image, described | {"crop_share": 0.5, "interpolation": "bicubic"})
    wanted = center_crop(image, Square(28, 0.5, "bicubic"))
    assert np.array_equal(cropped * 255, np.asarray(wanted).transpose(2, 0, 1))
    assert np.array_equal(
        preprocess(image, described) * 255, np.asarray(center_crop(image, Square(28))).transpose(2, 0, 1)
    )


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["compress.models", *arguments])
        status = command.main()
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def test_the_table_shows_what_a_pattern_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shown(capsys, monkeypatch)
    status, text = run("torchvision/shufflenet_v2_x0*", "resnet2*")
    assert status == 0
    assert {line.split()[0] for line in text.splitlines() if "torchvision/s" in line} == {
        "torchvision/shufflenet_v2_x0_5"
    }
    assert "resnet20" in text
    status, text = run("torchvision/*")
    assert status == 0
    assert all(f"torchvision/{name}" in text for name in torchvision_names())
    status, text = run("torchvision/shuflenet_v2_x0_5")
    assert status == 2
    assert "torchvision/shufflenet_v2_x0_5" in text
