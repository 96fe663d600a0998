"""The zoo: published sizes, the stem, classes and channels asked for, pretrained weights by name, and its table.

Nothing here can be downloaded: pretrained weights come from a replaced function that would fetch them.
"""

import importlib.util
import re
import sys
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from compress.evaluation.flops import count_cost
from compress.launch.commands import models as command
from compress.models import ZOO, Architecture, build, check_model, stem_for
from compress.utils.errors import UserError
from tests.zoo.conftest import NAMES, needs, networks

META = torch.device("meta")  # shapes alone: no weight is drawn, nothing is multiplied


def on_meta(name: str, stem: str, channels: int, classes: int) -> nn.Module:
    with META:
        return build(Architecture(name, stem, channels, classes)).eval()


@pytest.mark.parametrize("name", networks(NAMES))
def test_a_network_takes_what_it_is_built_for(name: str) -> None:
    """A small stem leaves rows and columns to look at; each takes grey, colour and any other number of channels."""
    small, published = on_meta(name, "small", 1, 7), on_meta(name, "imagenet", 4, 1000)
    sides = []
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: sides.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        assert small(torch.zeros(2, 1, 32, 32, device=META)).shape == (2, 7)
        assert published(torch.zeros(2, 4, 64, 64, device=META)).shape == (2, 1000)
    maps = [side for side in sides if side != (1, 1)]  # squeeze-and-excitation looks at means
    assert min(maps) >= (4, 4)
    assert maps[0] == (32, 32)


# Millions of parameters with 1,000 classes, and of multiply-accumulates at 224 pixels, as the papers or the libraries'
# pages give them. SqueezeNet 1.1 is said to take 2.4 times fewer than 1.0.
PUBLISHED = {
    "mobilenet_v1": (4.2, 569),
    "mobilenet_v2": (3.5, 300),
    "mobilenet_v3_small": (2.5, 56),
    "mobilenet_v3_large": (5.4, 219),
    "squeezenet1_0": (1.25, 819),
    "squeezenet1_1": (1.24, 349),
    "shufflenet_v2_x0_5": (1.37, 41),
    "shufflenet_v2_x1_0": (2.3, 146),
    "mnasnet1_0": (4.4, 314),
    "efficientnet_b0": (5.3, 390),
    "efficientnet_lite0": (4.7, 385),
    "resnet18": (11.7, 1814),
    "resnet34": (21.8, 3664),
    "resnet50": (25.6, 4089),
    "vgg16_bn": (138.4, 15470),
}


@pytest.mark.parametrize("name", networks(list(PUBLISHED)))
def test_a_network_has_the_published_size(name: str) -> None:
    parameters, macs = count_cost(on_meta(name, "imagenet", 3, 1000), (3, 224, 224))
    assert (parameters / 1e6, macs / 1e6) == pytest.approx(PUBLISHED[name], rel=0.03)


# He et al. 2015, table 6 (the last layers' share is the same), that of 8 layers by hand; Zagoruyko & Komodakis 2016,
# table 4.
CIFAR = {
    "resnet8": 0.0753, "resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85,
    "resnet110": 1.7, "wrn_16_2": 0.7, "wrn_40_2": 2.2, "wrn_28_10": 36.5,
}  # fmt: skip


@pytest.mark.parametrize("name", CIFAR)
def test_a_cifar_network_has_the_published_size(name: str) -> None:
    parameters, _ = count_cost(on_meta(name, "small", 3, 10), (3, 32, 32))
    assert parameters / 1e6 == pytest.approx(CIFAR[name], rel=0.03)


def test_small_images_get_the_small_stem() -> None:
    assert [stem_for("auto", pixels) for pixels in (8, 64, 65)] == ["small", "small", "imagenet"]
    assert stem_for("imagenet", 8) == "imagenet"


def test_vgg_for_small_images_has_one_linear_layer_and_its_dropout() -> None:
    head = on_meta("vgg16_bn", "small", 3, 5).classifier
    assert [type(module) for module in head] == [nn.Dropout, nn.Linear]
    assert head[0].p == 0.5
    assert (head[1].in_features, head[1].out_features) == (512, 5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet1_0"])
def test_batch_norm_learns_its_statistics_within_a_short_training(name: str) -> None:
    """With torchvision's 0.01 and 0.0003 they are still on their way when a training of hundreds of steps ends."""
    norms = [m for m in on_meta(name, "small", 1, 5).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


def filled(network: nn.Module) -> dict[str, Tensor]:
    """Weights that can be told from fresh ones."""
    return {name: torch.full_like(value, 0.25) for name, value in network.state_dict().items()}


def pretrained_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets torchvision fetch what `filled` gives; returns a name of weights."""
    published = torchvision.models.get_model(name)
    state = published.state_dict()  # with MNASNet's version number
    for key, value in filled(published).items():
        state[key] = value
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    return "IMAGENET1K_V1"


def pretrained_timm(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `pretrained_torchvision`."""
    import timm

    state = filled(timm.create_model(ZOO[name].timm))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: state)
    tag = {"mobilenet_v1": "ra4_e3600_r224_in1k", "mobilevit_xxs": "cvnets_in1k", "efficientnet_lite0": "ra_in1k"}
    return tag[name]


@pytest.mark.parametrize(
    ("name", "fetch"),
    [
        *((name, pretrained_torchvision) for name in ("resnet18", "squeezenet1_1", "mnasnet1_0", "shufflenet_v2_x0_5")),
        *(
            pytest.param(name, pretrained_timm, marks=needs(name))
            for name in ("mobilenet_v1", "efficientnet_lite0", "mobilevit_xxs")
        ),
    ],
)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_pretrained_weights_fill_all_but_a_new_classifier(
    name: str, fetch: Callable[[str, pytest.MonkeyPatch], str], stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(Architecture(name, stem, 3, 7), weights=fetch(name, monkeypatch))
    layers = {key: m for key, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    *others, last = layers.values()
    assert all((layer.weight == 0.25).all() for layer in others)
    assert len(last.weight) == 7
    assert not (last.weight == 0.25).any()


def test_every_network_of_a_library_lists_its_pretrained_weights() -> None:
    for name, entry in ZOO.items():
        if entry.torchvision:
            expected = f"received teacher.weights=NOPE; expected one of IMAGENET1K_V1.*name one of these for {name}"
            with pytest.raises(UserError, match=expected):
                build(Architecture(name, "imagenet", 3, 10), weights="NOPE")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize(("name", "tag"), [("mobilevit_xxs", "cvnets_in1k"), ("mobilenet_v1", "ra4_e3600_r224_in1k")])
def test_timms_weights_are_known_by_their_tags(name: str, tag: str) -> None:
    with pytest.raises(UserError, match=f"received teacher.weights=NOPE; expected one of .*{tag}"):
        build(Architecture(name, "imagenet", 3, 10), weights="NOPE")


def test_without_the_network_a_checkpoint_is_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no route to host; .* give the file as teacher\.checkpoint"):
        build(Architecture("resnet18", "imagenet", 3, 10), weights="IMAGENET1K_V1")


def test_without_timm_its_networks_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.models.third_party.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"teacher.model=mobilevit_xxs without .* timm; .*pip install \"compress\[timm\]"
    ):
        check_model("mobilevit_xxs", "teacher.model")
    check_model("mobilenet_v2", "teacher.model")


@pytest.mark.parametrize("timm", [True, False])
def test_the_table_has_a_row_a_network(
    timm: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {name: ZOO[name] for name in ("depthwise", "mobilenet_v2", "resnet56", "mobilevit_xxs")}
    if timm and importlib.util.find_spec("timm") is None:
        del shown["mobilevit_xxs"]
    if not timm:
        monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(command, "ZOO", shown)
    monkeypatch.setattr(sys, "argv", ["compress.models", "--image-size", "224", "--classes", "1000"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert re.search(r"mobilenet_v2 +3.50 M +301 M +3.\d\d MiB Sandler et al. 2018", rows["mobilenet_v2"])
    if not timm:
        assert 'pip install "compress[timm]"' in rows["mobilevit_xxs"]
    assert set(shown) <= set(rows)
