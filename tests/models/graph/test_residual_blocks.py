"""Blocks that can be left out are found by what a network computes, and leaving them out changes nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.models.cifar_resnet import CifarResNet
from compress.models.graph.residual_blocks import residual_blocks
from compress.models.sub_network import replace_by_identities

EXAMPLE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Layers whose forward pass is a function of the block and its input."""

    def __init__(self, function: Callable[["Block", Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.branch, self.norm, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.relu, self.relu6, self.drop = nn.ReLU(), nn.ReLU6(), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def network(function: Callable[[Block, Tensor], Tensor], before: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(before or nn.Conv2d(4, 4, 1), Block(function), nn.Flatten(), nn.Linear(256, 3)).eval()


@pytest.mark.parametrize(
    "function",
    [
        lambda block, x: x + block.branch(x),
        lambda block, x: block.drop(block.norm(block.branch(x))) + block.drop(x),
        lambda block, x: x + block.branch(x) + block.other(x),
        lambda block, x: (y := x + block.branch(x)) + block.other(y.relu()),
    ],
)
def test_an_input_plus_branches_is_a_block(function: Callable[[Block, Tensor], Tensor]) -> None:
    assert residual_blocks(network(function), EXAMPLE) == ["1"]


@pytest.mark.parametrize(
    "function",
    [
        lambda block, x: block.branch(x),
        lambda block, x: block.other(x) + block.branch(x),  # a projection in place of the shortcut
        lambda block, x: block.relu(x + block.branch(x)),  # it would change an input below 0
        lambda block, x: x + x,
        lambda block, x: x - block.branch(x) * x + block.branch(x),  # its layer is called twice, and no sum ends it
        lambda block, x: x[:, :, :4] + block.branch(x)[:, :, :4],
        lambda block, x: x + block.branch(x).mean((2, 3), keepdim=True) if x.sum() > 0 else x,  # it cannot be traced
    ],
)
def test_what_is_more_than_an_input_plus_branches_is_none(function: Callable[[Block, Tensor], Tensor]) -> None:
    assert residual_blocks(network(function), EXAMPLE) == []


def test_an_activation_after_the_sum_may_follow_its_own_kind() -> None:
    after = lambda block, x: block.relu(x + block.branch(x))
    assert residual_blocks(network(after, nn.ReLU()), EXAMPLE) == ["1"]
    assert residual_blocks(network(after, nn.Sequential(nn.ReLU(), nn.AvgPool2d(1))), EXAMPLE) == ["1"]
    assert residual_blocks(network(after, nn.ReLU6()), EXAMPLE) == []
    capped = lambda block, x: block.relu6(x + block.branch(x))
    assert residual_blocks(network(capped, nn.ReLU()), EXAMPLE) == []


def test_a_block_that_is_called_twice_is_none() -> None:
    whole = network(lambda block, x: x + block.branch(x))
    twice = nn.Sequential(whole[1], whole[1], *whole[2:])
    assert residual_blocks(twice, EXAMPLE) == []


def test_a_block_that_the_network_reads_elsewhere_stays() -> None:
    whole = network(lambda block, x: x + block.branch(x))

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, x: Tensor) -> Tensor:
            return self.whole(x) * self.whole[1].branch.weight.abs().mean()

    assert residual_blocks(Reader().eval(), EXAMPLE) == []


def test_blocks_of_a_resnet_are_those_without_a_stride() -> None:
    torch.manual_seed(0)
    resnet = CifarResNet(20, 4, 3).eval()
    assert residual_blocks(resnet, EXAMPLE) == [f"layer{n}.{at}" for n in (1, 2, 3) for at in (0, 1, 2) if n == 1 or at]


def test_without_a_block_the_network_computes_what_it_does_where_the_branch_adds_nothing() -> None:
    torch.manual_seed(0)
    resnet = CifarResNet(20, 4, 3).eval()
    names = residual_blocks(resnet, EXAMPLE)[::2]
    with torch.no_grad():
        for name in names:
            resnet.get_submodule(name).bn2.weight.zero_()
        expected = resnet(EXAMPLE)
        assert torch.equal(replace_by_identities(resnet, names)(EXAMPLE), expected)
