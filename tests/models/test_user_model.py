"""A network of the user's own is taken for the same only where it is the same, whatever makes the difference."""

import random
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.methods.restore import restore, restore_float
from compress.models import Architecture
from compress.models.artifact import Artifact, Spec, write_model
from compress.models.outputs import difference, fixed_images, fixed_outputs
from compress.models.seeds import seeded
from compress.models.user_model import USER_MODELS, identity, register_user_model, user_model_digest
from compress.utils.errors import UserError
from compress.utils.files import OUTPUTS
from tests.models import user_helper

SHAPE = (1, 8, 8)
HERE = "tests.models.test_user_model"


class Net(nn.Module):
    """Small, and full of what no state_dict and no repr shows."""

    slope = 0.1

    def __init__(self, num_classes: int = 3, act: Any = "relu", order: Any = None, rate: float = 0.0):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, num_classes)
        self.act, self.order, self.rate = act, order, rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = self.act(x) if callable(self.act) else getattr(F, self.act)(x)
        x = F.dropout(x, self.rate, self.training)
        x = F.leaky_relu(x, self.slope).mean((2, 3))
        return self.head(x if self.order is None else x[:, self.order])


def net(**settings: Any) -> Net:
    torch.manual_seed(0)
    return Net(**settings)


def known(network: nn.Module, name: str = "Net@test") -> dict[str, Any]:
    USER_MODELS[name] = network
    try:
        return identity(name, SHAPE)
    finally:
        del USER_MODELS[name]


def from_cell(text: str) -> nn.Module:
    """A network whose class was typed into a notebook: no file has its source."""
    space = {"nn": nn, "F": F, "torch": torch, "__name__": "__main__"}
    exec(text, space)
    torch.manual_seed(0)
    return space["make"]()


CELL = """
def make(factor={default}):
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 3)
        def forward(self, x, extra={extra}):
            return F.leaky_relu(self.fc(x.flatten(1)), {constant}) * factor + extra
    return Cell()
"""
SAME = {"default": 1.0, "extra": 0, "constant": 0.1}


@pytest.mark.parametrize("change", [{"default": 2.0}, {"extra": 1}, {"constant": 0.5}])
def test_a_notebooks_class_is_known_by_its_constants_defaults_and_closures(change: dict[str, float]) -> None:
    first, again, other = (from_cell(CELL.format(**SAME | more)) for more in ({}, {}, change))
    assert user_model_digest(first) == user_model_digest(again) != user_model_digest(other)
    assert known(first)["outputs"] != known(other)["outputs"]


@pytest.mark.parametrize(
    "change",
    [
        {"act": "silu"},
        {"act": torch.tanh},
        {"act": lambda x: x * 2},
        {"order": [1, 0, 2, 3, 4, 5, 6, 7]},
        {"rate": 0.5},
    ],
)
def test_plain_attributes_make_another_network(change: dict[str, Any]) -> None:
    first, again, other = known(net()), known(net()), known(net(**change))
    assert first == again
    assert first["parts"] != other["parts"]
    assert first["outputs"] != other["outputs"]  # in training, where it is dropout


def test_what_is_in_no_attribute_shows_in_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class attribute, a constant of another file, a tensor that is no buffer."""
    tensor = torch.arange(8.0)

    def scaled() -> nn.Module:
        network = net(act=user_helper.activation)
        network.scale = tensor  # no buffer, and no name for it in repr
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0] * module.scale,))
        return network

    first = known(scaled())
    assert first == known(scaled())
    for place, name, value in ((Net, "slope", 0.7), (user_helper, "SLOPE", 0.7)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            assert known(scaled())["outputs"] != first["outputs"]
    tensor[0] = 5.0
    assert known(scaled())["outputs"] != first["outputs"]


def test_a_librarys_network_with_another_attribute_is_another() -> None:
    from torchvision.models import googlenet

    network = googlenet(weights=None, num_classes=3, aux_logits=False, init_weights=False)
    digest = user_model_digest(network)
    network.transform_input = True
    assert user_model_digest(network) != digest


def test_what_changes_by_itself_is_no_difference() -> None:
    """Stored activations, addresses in a repr, hooks' numbers."""
    first = net(act=torch.relu)
    digest = user_model_digest(first)
    first.kept = first.conv(torch.zeros(1, *SHAPE))
    kept = user_model_digest(first)
    first.kept = first.conv(torch.ones(1, *SHAPE))
    assert user_model_digest(first) == kept != digest
    second = net(act=torch.relu)
    assert user_model_digest(second) == digest
    hooked = [user_model_digest(_hooked()) for _ in range(2)]
    assert hooked[0] == hooked[1] != digest


def _hooked() -> nn.Module:
    network = net(act=torch.relu)
    network.register_forward_hook(_double)
    return network


def _double(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def test_the_digest_of_outputs_does_not_know_how_sums_are_ordered() -> None:
    """What another CPU or number of threads changes: float32's last digits, here by channels_last and threads."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 3))
    first = known(wide)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert known(wide.to(memory_format=torch.channels_last))["outputs"] == first["outputs"]
    finally:
        torch.set_num_threads(threads)


def test_random_numbers_go_on_as_they_were() -> None:
    for module, draw in ((random, random.random), (np.random, np.random.rand), (torch, lambda: torch.rand(1).item())):
        (module.manual_seed if module is torch else module.seed)(3)
        expected = draw()
        (module.manual_seed if module is torch else module.seed)(3)
        with seeded(5):
            inside = draw()
        assert draw() == expected != inside


def drawn() -> nn.Module:
    order = np.random.permutation(8).tolist() if random.random() > 2 else random.sample(range(8), 8)
    return Net(order=np.random.permutation(order).tolist())


def unseeded() -> nn.Module:
    return Net(order=np.random.default_rng().permutation(64)[:8].argsort().tolist())


def unseeded_weights() -> nn.Module:
    network = Net()
    with torch.no_grad():
        network.conv.weight += torch.from_numpy(np.random.default_rng().standard_normal((8, 1, 3, 3))).float()
    return network


def always_dropping() -> nn.Module:
    network = Net()
    network.conv.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.5))
    return network


def test_drawn_wiring_is_drawn_again_the_same() -> None:
    orders = []
    for seed in (0, 0, 1):
        random.seed(len(orders))  # whatever was drawn before
        register_user_model(f"{HERE}:drawn", SHAPE, 3, seed)
        orders.append(USER_MODELS[f"{HERE}:drawn"].order)
    assert orders[0] == orders[1] != orders[2]


def test_wiring_that_cannot_be_drawn_again_is_refused() -> None:
    with pytest.raises(UserError, match=r"computes something else at each call.*default_rng"):
        register_user_model(f"{HERE}:unseeded", SHAPE, 3, seed=0)


def test_weights_that_cannot_be_drawn_again_are_said(caplog: pytest.LogCaptureFixture) -> None:
    register_user_model(f"{HERE}:unseeded_weights", SHAPE, 3, seed=0)
    assert "another call returns another network" in caplog.text


def test_dropout_that_does_not_stop_in_eval_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"other logits for the same images.*self\.training"):
        register_user_model(f"{HERE}:always_dropping", SHAPE, 3, seed=0)


def stage(folder: Path, network: nn.Module, name: str) -> Path:
    spec = Spec(vars(Architecture(name, "small", 1, 3, 8)), ["a", "b", "c"], {"shape": list(SHAPE)})
    write_model(Artifact(network.eval(), spec), folder)
    return folder


@pytest.fixture
def own_name() -> Any:
    name = "Net@stage"
    USER_MODELS[name] = net()
    yield name
    del USER_MODELS[name]


def test_a_stage_is_loaded_as_the_network_that_made_it_and_as_no_other(tmp_path: Path, own_name: str) -> None:
    folder = stage(tmp_path, net(), own_name)
    assert difference(fixed_outputs(restore_float(folder), SHAPE), fixed_outputs(net().eval(), SHAPE)) < 1e-6
    for other in (net(act="silu"), net(order=[1, 0, 2, 3, 4, 5, 6, 7])):
        USER_MODELS[own_name] = other
        for load in (lambda: restore_float(folder), lambda: restore(folder, torch.device("cpu"))):
            with pytest.raises(UserError, match=r"differ from those that the stage recorded.*cache\.enabled=false"):
                load()
    (folder / OUTPUTS).unlink()  # as an earlier version wrote it
    assert restore_float(folder) is not None


def test_tied_weights_are_loaded_as_they_were_saved(tmp_path: Path, own_name: str) -> None:
    """Pruning unties them; what was trained apart must not be written into one tensor."""

    def tied() -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1), nn.Conv2d(1, 1, 3, 1, 1), nn.Flatten(), nn.Linear(64, 3))
        network[1].weight = network[0].weight
        return network

    USER_MODELS[own_name] = tied()
    same = restore_float(stage(tmp_path, tied(), own_name))
    assert same[0].weight is same[1].weight
    apart = tied()
    apart[1].weight = nn.Parameter(apart[1].weight.detach() * 2)
    loaded = restore_float(stage(tmp_path, apart, own_name))
    assert torch.equal(loaded[1].weight, 2 * loaded[0].weight)


def test_later_stages_train_what_was_frozen(tmp_path: Path, own_name: str) -> None:
    USER_MODELS[own_name] = net().requires_grad_(False)
    assert all(value.requires_grad for value in restore_float(stage(tmp_path, net(), own_name)).parameters())


def test_fixed_images_are_fixed() -> None:
    images = fixed_images((3, 5, 7))
    assert images.shape == (4, 3, 5, 7)
    assert torch.equal(images, fixed_images((3, 5, 7)))
    assert images[0, 0, 0, 0].item() == pytest.approx(float(np.random.RandomState(20240131).standard_normal()))


def test_settings_in_an_object_make_another_network() -> None:
    first = net(order=types.SimpleNamespace(width=1))
    second = net(order=types.SimpleNamespace(width=2))
    assert user_model_digest(first) != user_model_digest(second)


class Versioned(Net):
    """Refuses tensors that come without the version of its class, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: dict, prefix: str, metadata: dict, *rest: Any) -> None:
        if metadata.get("version") is None:
            raise ValueError("version should be set")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_class_that_wants_its_version_is_loaded(tmp_path: Path, own_name: str) -> None:
    torch.manual_seed(0)
    network = Versioned()
    USER_MODELS[own_name] = network
    restored = restore_float(stage(tmp_path, network, own_name))
    assert difference(fixed_outputs(restored, SHAPE), fixed_outputs(network.eval(), SHAPE)) < 1e-6
