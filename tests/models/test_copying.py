"""Networks as people hold them: in wrappers, with stored activations, locks, open files, frozen or half-precise."""

import copy
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.models import Architecture, build
from compress.models.user_model import USER_MODELS, add_user_model, register_user_model
from compress.utils.errors import UserError
from tests.own_networks import Plain

SHAPE, IMAGES = (1, 8, 8), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def taken(network: nn.Module) -> nn.Module:
    """The network as a stage gets it, from one that was given in Python."""
    name = add_user_model(network)
    try:
        register_user_model(name, SHAPE, 3, seed=0)
        return build(Architecture(name, "small", 1, 3, 8)).eval()
    finally:
        del USER_MODELS[name]


def plain() -> Plain:
    torch.manual_seed(0)
    return Plain(3, 1).eval()


def averaged(network: nn.Module) -> nn.Module:
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))


class Inside(nn.Module):
    """A wrapped part in a network of the user's own."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]):
        super().__init__()
        self.network = wrap(plain())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


@pytest.mark.parametrize("around", [lambda n: n, Inside], ids=["all", "a part"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: torch.compile(n, backend="eager"),
        nn.DataParallel,
        averaged,
        lambda n: nn.DataParallel(torch.compile(n, backend="eager")),
    ],
    ids=["compiled", "parallel", "averaged", "both"],
)
def test_wrappers_are_taken_off(wrap: Callable, around: Callable) -> None:
    given = wrap(plain()) if around is not Inside else Inside(wrap)
    found = taken(given)
    names = {name.removeprefix("network.") for name in found.state_dict()}
    assert names == set(plain().state_dict())
    with torch.no_grad():
        torch.testing.assert_close(found(IMAGES), plain()(IMAGES))


class Keeping(Plain):
    """Keeps its features for a map of what it looked at, as Grad-CAM does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features, self.all = self.stem(x), [x]
        self.all.append(self.features)
        return self.head(self.features.mean((2, 3)))


def keeping() -> nn.Module:
    torch.manual_seed(0)
    network = Keeping(3, 1)
    network(IMAGES)  # the features have a graph now
    return network


def hooked() -> nn.Module:
    network, kept = plain(), {}
    network.stem.register_forward_hook(lambda module, inputs, output: kept.update(output=output))
    network.kept = kept
    network(IMAGES)
    return network


def locked() -> nn.Module:
    network = plain()
    network.lock, network.stem.held = threading.Lock(), {"lock": threading.Lock(), "numbers": [1, 2]}
    return network


def opened() -> nn.Module:
    network = plain()
    network.log, network.numbers = sys.__stderr__, (number for number in range(3))
    return network


def weight_normed() -> nn.Module:
    network = plain()
    network.stem[0] = torch.nn.utils.weight_norm(network.stem[0])
    network.body[0] = torch.nn.utils.spectral_norm(network.body[0])
    return network


@pytest.mark.parametrize("make", [keeping, hooked, locked, opened, weight_normed])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_deepcopy_refuses_is_taken_and_can_be_copied_again(make: Callable) -> None:
    given = make().eval()
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(make())
    found = taken(given)
    expected = given(IMAGES)
    for network in (found, copy.deepcopy(found)):
        torch.testing.assert_close(network(IMAGES), expected)  # with gradients: what is stored has a graph again
        assert network is not given
        assert not {id(p) for p in network.parameters()} & {id(p) for p in given.parameters()}
    copy.deepcopy(found)(IMAGES).sum().backward()


def test_tensors_of_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        given = Plain(3, 1).eval()
    found = taken(given)
    found(IMAGES).sum().backward()
    assert all(value.grad is not None for value in found.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    found = taken(plain().to(dtype))
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    torch.testing.assert_close(found(IMAGES), plain()(IMAGES), rtol=0.05, atol=0.05)


class Grid(nn.Module):
    """A buffer and a parameter whose elements share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, 8).expand(1, 1, 8, 8))
        self.scale = nn.Parameter(torch.ones(1).expand(8))
        self.body, self.head = nn.Conv2d(2, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(torch.cat([x, self.grid.expand(x.shape[0], 1, 8, 8)], 1))
        return self.head(x.mean((2, 3)) * self.scale)


def test_expanded_tensors_can_be_loaded() -> None:
    given = Grid()
    found = taken(given)
    found.load_state_dict({name: value.clone() + 1 for name, value in given.state_dict().items()})
    assert (found.grid == given.grid + 1).all()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layers_are_filled_once_and_the_same_each_time() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))

    first, second = taken(lazy()), taken(lazy())
    assert first[0].weight.shape == (4, 1, 3, 3)
    assert torch.equal(first[4].weight, second[4].weight)


def test_frozen_parameters_stay_frozen_in_the_copy() -> None:
    given = plain().requires_grad_(False)
    given.head.requires_grad_(True)
    assert {name for name, value in taken(given).named_parameters() if value.requires_grad} == {
        "head.weight",
        "head.bias",
    }


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UserError, match="TorchScript"):
        add_user_model(torch.jit.script(nn.Sequential(nn.Linear(2, 2))))


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"model of str; expected a torch\.nn\.Module"):
        add_user_model("resnet18")


class Uncopyable(Plain):
    def __deepcopy__(self, memo: dict) -> nn.Module:
        raise NotImplementedError("not to be copied")


def test_a_network_that_cannot_be_copied_at_all_is_named() -> None:
    with pytest.raises(UserError, match="Uncopyable, which cannot be copied: NotImplementedError: not to be copied"):
        add_user_model(Uncopyable(3, 1))
