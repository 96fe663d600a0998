"""Layers in their form for training compute what they compute else, keep less, and are as before behind it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.training.fast_layers import optimized_layers

ACTIVATIONS = {
    "relu6": nn.ReLU6(inplace=True),
    "hardtanh": nn.Hardtanh(-0.5, 0.25, inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "silu": nn.SiLU(inplace=True),
    "relu": nn.ReLU(inplace=True),
    "out of place": nn.ReLU6(),
}
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network_of(activation: nn.Module) -> nn.Module:
    """Its last values are averaged, as in most networks."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), activation, nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)]
    network = nn.Sequential(*layers, copy.deepcopy(activation), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        for norm in (network[1], network[4]):
            norm.weight.fill_(3)  # values reach 6
            norm.bias[0] = 6
    return network.to(memory_format=torch.channels_last)


def step(network: nn.Module) -> tuple[Tensor, list[Tensor], int]:
    """A step's logits and gradients, and how many values its forward pass kept for them."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    network.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = network(IMAGES.contiguous(memory_format=torch.channels_last))
    (logits * torch.linspace(-1, 1, 32)).sum().backward()
    return logits, [parameter.grad for parameter in network.parameters()], sum(kept.values())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_the_same(name: str) -> None:
    network = network_of(copy.deepcopy(ACTIVATIONS[name]))
    state, printed = copy.deepcopy(network.state_dict()), repr(network)
    logits, gradients, _ = step(network)
    network.load_state_dict(state)
    with optimized_layers(network):
        found, others, _ = step(network)
    assert torch.equal(found, logits)
    assert repr(network) == printed
    for one, other in zip(gradients, others, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(gradient.abs().max() for gradient in gradients)


@pytest.mark.parametrize("name", ["relu6", "hardtanh"])
def test_a_clamp_in_place_keeps_its_output_alone(name: str) -> None:
    """Outside, torch keeps a clone of its input too, for the next layer keeps the output."""
    network = network_of(copy.deepcopy(ACTIVATIONS[name]))
    _, _, before = step(network)
    with optimized_layers(network):
        _, _, inside = step(network)
    assert before - inside == 6 * 16 * 6 * 6  # the clone for the first one; nothing else needs the second's output
    assert step(network)[2] == before  # as it was


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_batch_norm_gets_its_gradients_in_the_order_of_its_values(name: str) -> None:
    network, found = network_of(copy.deepcopy(ACTIVATIONS[name])), []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.register_hook(lambda gradient: found.append(gradient.is_contiguous(memory_format=torch.channels_last)))

    with optimized_layers(network):
        network[4].register_forward_hook(note)
        step(network)
    assert found == [True]
    assert len(network[4]._forward_hooks) == 1  # the test's own


def test_evaluation_needs_no_gradient() -> None:
    network = network_of(nn.ReLU6(inplace=True)).eval()
    with torch.no_grad():
        wanted = network(IMAGES)
        with optimized_layers(network):
            assert torch.equal(network(IMAGES), wanted)


def test_a_clamp_of_low_precision_stays_so() -> None:
    network = network_of(nn.ReLU6(inplace=True))
    with optimized_layers(network), torch.autocast("cpu", torch.bfloat16):
        logits = network(IMAGES)
        assert logits.dtype == torch.bfloat16
    F.mse_loss(logits.float(), torch.zeros(6, 32)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
