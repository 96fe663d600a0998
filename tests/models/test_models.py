"""The zoo, its stems, its widths, and weights from elsewhere."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.models import Architecture, build, check_model
from compress.models.weights import load_checkpoint
from compress.models.widths import read_widths, set_widths
from compress.utils.errors import UserError
from tests.zoo.conftest import NAMES, networks


@pytest.mark.parametrize("name", networks(NAMES))
@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_takes_what_it_is_built_for(name: str, stem: str, channels: int) -> None:
    network = build(Architecture(name, stem, channels, 7)).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18"])
def test_the_small_stem_keeps_four_pixels_a_side_of_32(name: str) -> None:
    network = build(Architecture(name, "small", 3, 7)).eval()
    seen = []
    last = network.layer4 if name == "resnet18" else network.features
    last.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert seen == [(4, 4)]


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_cifar_resnets_have_the_published_size(name: str, parameters: int) -> None:
    """He et al. 2015, table 6: 0.27 M and 0.85 M."""
    network = build(Architecture(name, "small", 3, 10))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_one_grey_channel_sees_what_three_equal_channels_see() -> None:
    from compress.models.stems import set_input_channels

    torch.manual_seed(0)
    network = build(Architecture("mobilenet_v2", "small", 3, 5)).eval()
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        colour = network(image.expand(2, 3, 32, 32))
        set_input_channels(network, 1)
        torch.testing.assert_close(network(image), colour, rtol=1e-4, atol=1e-5)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UserError, match=r"teacher\.model=resnet19; expected one of .*mobilenet_v2"):
        check_model("resnet19", "teacher.model")
    with pytest.raises(UserError, match=r"teacher\.weights=NOPE; expected one of IMAGENET1K_V1"):
        build(Architecture("resnet18", "imagenet", 3, 10), weights="NOPE")
    with pytest.raises(UserError, match=r"teacher\.weights=X; expected null for resnet20"):
        build(Architecture("resnet20", "small", 3, 10), weights="X")


def test_widths_rebuild_a_narrower_network() -> None:
    architecture = Architecture("resnet8", "small", 1, 3)
    narrow = build(architecture)
    set_widths(narrow, {"layer1.0.conv1": [5, 16, 1], "layer1.0.bn1": [5], "layer1.0.conv2": [16, 5, 1]})
    again = build(architecture)
    set_widths(again, read_widths(narrow))
    again.load_state_dict(narrow.state_dict())
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.eval()(image), narrow.eval()(image))
    assert again.layer1[0].conv1.out_channels == 5


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    return build(Architecture("resnet8", "small", 1, 3))


def loaded(path: Path, classes: int = 3) -> nn.Module:
    network = build(Architecture("resnet8", "small", 1, classes))
    load_checkpoint(network, str(path))
    return network


@pytest.mark.parametrize("form", ["plain.pth", "nested.th", "parallel.pt", "old.pth", "tensors.safetensors"])
def test_checkpoints_load_exactly(tmp_path: Path, trained: nn.Module, form: str) -> None:
    state, path = trained.state_dict(), tmp_path / form
    if form.startswith("old"):  # before torch 0.4.1, batch norm did not count its batches
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if form.startswith("parallel"):
        state = {f"module.{name}": value for name, value in state.items()}
    if form.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form.startswith("nested") else state, path)
    for name, value in loaded(path).state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, writer: str) -> None:
    path, trace = tmp_path / "bomb.pth", tmp_path / "ran"
    if writer == "torch":
        torch.save({"state_dict": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(UserError, match="expected a file of tensors alone"):
        loaded(path)
    assert not trace.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(trained, tmp_path / "module.pth")
    with pytest.raises(UserError, match="expected a file of tensors alone"):
        loaded(tmp_path / "module.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense that is no checkpoint"])
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="expected a file of tensors alone"):
        loaded(tmp_path / name)


def test_another_architecture_is_named(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"other shapes in linear\.weight, linear\.bias"):
        loaded(tmp_path / "x.pth", classes=4)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "y.pth")
    with pytest.raises(UserError, match=r"lacks conv1\.weight.* has besides weight"):
        loaded(tmp_path / "y.pth")
    torch.save({"epoch": 3}, tmp_path / "z.pth")
    with pytest.raises(UserError, match="expected a dict of tensors"):
        loaded(tmp_path / "z.pth")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    state["linear.bias"][1] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"not finite: linear\.bias"):
        loaded(tmp_path / "x.pth")


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a file that exists"):
        loaded(tmp_path / "nowhere.pth")
