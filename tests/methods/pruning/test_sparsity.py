"""Sparsity learning: its gradients are torch-pruning's where those are right, and reach what goes with a channel."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.sparsity import SparsityPenalty, sparsity_penalty
from compress.utils.errors import UserError
from tests.methods.pruning.networks import SHAPE, Network, chain, conv, pooled

EXAMPLE = torch.zeros(1, *SHAPE)
METHODS = ["group_norm", "growing_reg", "bn_scale"]


def plain() -> nn.Module:
    """A chain of convolutions with batch norm, and linear layers."""
    return nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 16), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def residual() -> nn.Module:
    return Network(
        lambda net, x: net.head(pooled((y := net.norm(net.first(x)).relu()) + net.last(net.middle(y).relu()))),
        first=conv(3, 16),
        norm=nn.BatchNorm2d(16),
        middle=conv(16, 16),
        last=conv(16, 16),
        head=nn.Linear(16, 5),
    )


def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 8, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))


def concatenated() -> nn.Module:
    return Network(
        lambda net, x: net.head(pooled(net.norm(torch.cat([net.first(x), net.second(x)], 1)))),
        first=conv(3, 8),
        second=conv(3, 8),
        norm=nn.BatchNorm2d(16),
        head=nn.Linear(16, 5),
    )


NETWORKS = {
    "plain": plain,
    "residual": residual,
    "flattened": flattened,
    "concatenated": concatenated,
    "depthwise": lambda: chain(nn.Sequential(conv(16, 16, groups=16), nn.BatchNorm2d(16))),
    "grouped": lambda: chain(conv(16, 16, groups=4)),
}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with no weight of 0 or 1, whose loss has a gradient of 0."""
    torch.manual_seed(0)
    network = build()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)
        parameter.grad = torch.zeros_like(parameter)
    return network


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def torch_prunings(network: nn.Module, method: str, weight: float) -> dict[str, Tensor]:
    """What torch-pruning adds to the gradients, where growing_reg has grown once."""
    pruners = torch_pruning.pruner
    arguments = {
        "importance": torch_pruning.importance.GroupMagnitudeImportance(p=2),
        "reg": weight,
        "ignored_layers": [network[-1]],
    }
    if method == "growing_reg":
        pruner = pruners.GrowingRegPruner(network, EXAMPLE, delta_reg=weight / 10, **arguments)
        pruner.update_reg()
    else:
        kind = {"group_norm": pruners.GroupNormPruner, "bn_scale": pruners.BNScalePruner}[method]
        pruner = kind(network, EXAMPLE, **arguments)
    pruner.regularize(network)
    return gradients(network)


@pytest.mark.parametrize("method", METHODS)
def test_on_a_chain_the_gradients_are_torch_prunings(method: str) -> None:
    wanted = torch_prunings(made(plain), method, 0.01)
    network = made(plain)
    penalty = sparsity_penalty(PrunableNetwork(network, EXAMPLE), method, 0.01)
    for epoch in (1, 2):
        penalty.start_epoch(epoch)
    penalty.add_gradients()
    found = gradients(network)
    if method == "growing_reg":  # torch-pruning adds this to a copy of the gradients
        for norm in ("1.weight", "4.weight"):
            assert found.pop(norm).any()
            assert not wanted.pop(norm).any()
    assert any(value.any() for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def one_channel(penalty: SparsityPenalty, channel: int) -> None:
    """Lets growing_reg pull at one channel of all groups, with the coefficient 1."""
    coefficients = torch.zeros_like(penalty.tensors()["coefficients"])
    coefficients[channel] = 1
    penalty.load({"coefficients": coefficients, "epoch": torch.tensor(1)})


def weights(network: nn.Module) -> int:
    """How many weights a network has, without biases, which no method pulls."""
    return sum(value.numel() for name, value in network.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_the_penalty_of_a_channel_reaches_the_weights_that_go_with_it(build: Callable[[], nn.Module]) -> None:
    """All of them, each with its own value as the gradient, and no other."""
    counts = [group.channels for group in PrunableNetwork(made(build), EXAMPLE).groups]
    assert counts
    for at, count in enumerate(counts):
        network = made(build)
        prunable = PrunableNetwork(network, EXAMPLE)
        penalty = sparsity_penalty(prunable, "growing_reg", 1.0)
        one_channel(penalty, sum(counts[:at]) + count // 2)
        penalty.add_gradients()
        reached = 0
        for parameter in network.parameters():
            pulled = parameter.grad != 0
            reached += int(pulled.sum())
            assert torch.equal(parameter.grad[pulled], parameter.detach()[pulled])
        left = [each - (each_at == at) for each_at, each in enumerate(counts)]
        scores = [torch.arange(each).ne(each // 2).float() for each in counts]
        narrow, _ = prunable.pruned_copy(left, scores)
        assert reached == weights(network) - weights(narrow) > 0


def test_group_norm_pulls_the_weakest_channel_16_times_as_much_as_the_strongest() -> None:
    network = made(plain)
    network[0].weight.data *= torch.arange(1, 9).view(8, 1, 1, 1)
    sparsity_penalty(PrunableNetwork(network, EXAMPLE), "group_norm", 0.5).add_gradients()
    coupled = [network[0].weight.flatten(1), network[3].weight.transpose(0, 1).flatten(1), network[1].weight[:, None]]
    norms = sum(weight.square().sum(1) for weight in coupled).sqrt()
    factors = (network[1].weight.grad / network[1].weight).detach()
    assert factors[norms.argmin()].item() == pytest.approx(8)
    assert factors[norms.argmax()].item() == pytest.approx(0.5)
    assert factors.argsort().tolist() == norms.argsort(descending=True).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_channels_that_are_alike_are_pulled_alike(method: str) -> None:
    network = made(plain)
    for parameter in network.parameters():
        parameter.data.fill_(2.0)
    penalty = sparsity_penalty(PrunableNetwork(network, EXAMPLE), method, 0.5)
    penalty.start_epoch(2)
    penalty.add_gradients()
    assert network[1].weight.grad.tolist() == [0.5 if method == "bn_scale" else 1.0] * 8


def test_growing_reg_grows_once_an_epoch_by_a_tenth_at_the_weakest_channel() -> None:
    penalty = sparsity_penalty(PrunableNetwork(made(flattened), EXAMPLE), "growing_reg", 0.5)
    assert penalty.tensors()["coefficients"].tolist() == [0.5] * 8
    for epoch, calls in ((1, 2), (2, 2), (3, 1)):
        for _ in range(calls):  # a restarted training calls it again
            penalty.start_epoch(epoch)
        coefficients = penalty.tensors()["coefficients"]
        assert coefficients.min().item() == pytest.approx(0.5)
        assert coefficients.max().item() == pytest.approx(0.5 + 0.05 * (epoch - 1))


def test_growing_reg_goes_on_from_its_saved_coefficients() -> None:
    network = made(residual)
    prunable = PrunableNetwork(network, EXAMPLE)
    first, second = (sparsity_penalty(prunable, "growing_reg", 0.5) for _ in range(2))
    first.start_epoch(2)
    second.load(copy.deepcopy(first.tensors()))
    for penalty in (first, second):
        penalty.start_epoch(2)
        penalty.start_epoch(3)
    assert torch.equal(first.tensors()["coefficients"], second.tensors()["coefficients"])
    assert first.tensors()["epoch"] == second.tensors()["epoch"] == 3


def test_group_norm_widens_the_gap_between_weak_and_strong_channels() -> None:
    network = made(flattened)
    penalty = sparsity_penalty(PrunableNetwork(network, EXAMPLE), "group_norm", 0.1)
    before = network[1].weight.detach().clone()
    for _ in range(10):
        network.zero_grad()
        penalty.add_gradients()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    kept = (network[1].weight / before).detach()
    assert kept.max().item() == pytest.approx(0.99**10, rel=1e-4)
    assert kept.min().item() < 0.3


def test_bn_scale_pulls_only_norms_of_channels_that_can_go_and_names_layers_without() -> None:
    network = made(
        lambda: Network(
            lambda net, x: net.logits_norm(net.head(pooled(net.second(net.norm(net.first(x)).relu()).relu()))),
            first=conv(3, 16),
            norm=nn.BatchNorm2d(16),
            second=conv(16, 16),
            head=nn.Linear(16, 5),
            logits_norm=nn.BatchNorm1d(5),
        )
    )
    penalty = sparsity_penalty(PrunableNetwork(network, EXAMPLE), "bn_scale", 0.5)
    penalty.add_gradients()
    assert {name for name, value in gradients(network).items() if value.any()} == {"norm.weight"}
    assert torch.equal(network.norm.weight.grad, 0.5 * network.norm.weight.detach().sign())
    reason = "no batch norm scales its filters: prune.sparsity does not weaken it"
    assert penalty.left_out == [{"layer": "second", "reason": reason}]


@pytest.mark.parametrize("frozen", [False, True])
def test_bn_scale_needs_a_batch_norm_that_is_trained(frozen: bool) -> None:
    network = made(flattened if frozen else lambda: chain(conv(16, 16)))
    if frozen:
        network[1].weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"received prune\.sparsity=bn_scale .* to mend it: set prune\.sparsity=group"):
        sparsity_penalty(PrunableNetwork(network, EXAMPLE), "bn_scale", 0.5)


def test_frozen_weights_stay_and_are_named_but_count_in_the_norms() -> None:
    network, free = made(plain), made(plain)
    network[3].weight.requires_grad_(False)
    penalties = [sparsity_penalty(PrunableNetwork(each, EXAMPLE), "group_norm", 0.5) for each in (network, free)]
    for penalty in penalties:
        penalty.add_gradients()
    reason = "its weight is frozen: prune.sparsity does not weaken it"
    assert penalties[0].left_out == [{"layer": "3", "reason": reason}]
    assert not network[3].weight.grad.any()
    for name, value in gradients(network).items():
        assert name == "3.weight" or torch.equal(value, free.get_parameter(name).grad)


def test_a_weight_that_the_loss_does_not_reach_is_pulled_nevertheless() -> None:
    network, wanted = made(plain), made(plain)
    network[1].weight.grad = None
    for each in (network, wanted):
        sparsity_penalty(PrunableNetwork(each, EXAMPLE), "group_norm", 0.5).add_gradients()
    assert torch.equal(network[1].weight.grad, wanted[1].weight.grad)


def test_channels_last_changes_nothing() -> None:
    """Neither the values nor the order of the gradients in memory."""
    network, wanted = made(NETWORKS["grouped"]), made(NETWORKS["grouped"])
    network.to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for each in (network, wanted):
        sparsity_penalty(PrunableNetwork(each, EXAMPLE), "group_norm", 0.5).add_gradients()
    for name, value in gradients(network).items():
        torch.testing.assert_close(value, wanted.get_parameter(name).grad)
    assert network.last.weight.grad.is_contiguous(memory_format=torch.channels_last)
