"""A folded network says what the whole one says, without its batch norms; the whole one stays as it is."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.models import Architecture, build
from compress.models.graph.fold_batch_norm import fold_batch_norm
from tests.zoo.conftest import networks

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))

# Of one network of each kind, the batch norms that stay: in front of a convolution, or inside a block that branches.
LEFT = {
    "mobilenet_v2": 0,
    "mobilenet_v3_small": 0,
    "resnet20": 0,
    "wrn_16_2": 6,
    "mobilevit_xxs": 9,
    "efficientnet_lite0": 0,
}


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def trained(network: nn.Module) -> nn.Module:
    """With statistics of images, and weights that differ from channel to channel."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        network.train()(IMAGES)
    return network.eval()


@pytest.mark.parametrize("name", networks(LEFT))
@torch.no_grad()
def test_it_says_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = trained(build(Architecture(name, "small", 3, 10)))
    state = copy.deepcopy(network.state_dict())
    short, logits = fold_batch_norm(network), network(IMAGES)
    torch.testing.assert_close(short(IMAGES) / logits.std(), logits / logits.std(), rtol=1e-4, atol=1e-4)
    assert norms(short) == LEFT[name]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class Shared(nn.Module):
    """One convolution with two batch norms, and one batch norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.shared, self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.shared(x)) + self.norms[1](self.shared(x))
        return self.norms[2](self.one(x)) + self.norms[2](self.other(x))


class Read(nn.Module):
    """The convolution's own output is read too."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        return x + self.norm(x)


@pytest.mark.parametrize("kind", [Shared, Read])
@torch.no_grad()
def test_what_others_need_stays(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = trained(kind())
    short = fold_batch_norm(network)
    assert norms(short) == norms(network)
    assert torch.equal(short(IMAGES), network(IMAGES))
