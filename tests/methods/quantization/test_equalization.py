"""Equalization: the same function, channels of one range, and int8 that no longer depends on how they were scaled."""

import copy
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.export.onnx import export_onnx
from compress.methods.quantization.pt2e import calibrate, convert, prepare, prepare_equalized

from .tiny_networks import Mobile, Residual, Shuffle, conv_bn, settled


def separable() -> nn.Sequential:
    """A depthwise separable network: five layers in a row, each read by the next alone."""
    return nn.Sequential(
        *conv_bn(3, 16, 3, nn.ReLU(), stride=2),
        *conv_bn(16, 16, 3, nn.ReLU(), groups=16),
        *conv_bn(16, 24, 1, nn.ReLU()),
        *conv_bn(24, 24, 3, nn.ReLU(), groups=12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(24, 10),
    )


@torch.no_grad()
def spread(network: nn.Sequential, decades: float) -> nn.Sequential:
    """The same function with each channel between two layers scaled by 10 to a random power within +-decades."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(3)
    layers = [layer for layer in network if isinstance(layer, (nn.Conv2d, nn.Linear))]
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm2d)]
    for norm, follower in zip(norms, layers[1:], strict=True):
        scale = 10 ** (decades * (2 * torch.rand(len(norm.bias), generator=generator) - 1))
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
        groups = getattr(follower, "groups", 1)
        incoming = follower.weight.view(groups, len(follower.weight) // groups, follower.weight.shape[1], -1)
        incoming.div_(scale.view(groups, 1, -1, 1))
    return network


@torch.no_grad()
def error(network: nn.Module, images: Tensor, equalized: bool) -> float:
    """Squared error of the int8 logits, as a share of the float ones' variance."""
    if equalized:
        prepared, _ = prepare_equalized(network, images[:1], 7, qat=False)
    else:
        prepared = prepare(network, images[:1], 7, qat=False)
    calibrate(prepared, [images])
    wanted = network(images)
    return ((convert(prepared)(images) - wanted).square().mean() / wanted.var()).item()


def test_int8_is_as_good_as_before_the_channels_were_spread(images):
    network = settled(separable(), images)
    apart = spread(network, 1.0)
    with torch.no_grad():
        assert torch.allclose(apart(images), network(images), atol=1e-4)
    plain, mended, unspread = error(apart, images, False), error(apart, images, True), error(network, images, True)
    assert plain > 100 * mended
    assert mended == pytest.approx(unspread, rel=0.2)


@pytest.mark.parametrize("build", [separable, Residual, Shuffle])
def test_the_function_stays_the_same(images, build):
    network = settled(build(), images)
    prepared, _ = prepare_equalized(network, images[:1], 7, qat=False)
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), network(images), rtol=0, atol=1e-5)


def test_both_sides_of_every_pair_have_one_range(images):
    prepared, found = prepare_equalized(spread(settled(separable(), images), 1.5), images[:1], 8, qat=False)
    names = ["0", "3", "6", "9", "15"]
    assert found.pairs == [*pairwise(names)]
    weights = [prepared.get_parameter(f"{name}.weight").detach() for name in names]
    groups = [1, 16, 1, 12, 1]
    for first, (second, count) in pairwise(zip(weights, groups, strict=True)):
        incoming = second.view(count, len(second) // count, second.shape[1], -1).abs().amax((1, 3)).flatten()
        torch.testing.assert_close(first[0].flatten(1).abs().amax(1), incoming, rtol=1e-2, atol=0)


def test_a_pair_with_relu6_between_is_left_alone(images):
    """ReLU in its place would change the function."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        network[0].weight.mul_(20)  # the clamp acts
    network.append(nn.Flatten()).eval()
    prepared, found = prepare_equalized(network, images[:1], 7, qat=False)
    assert found.pairs == [("2", "4")]
    assert found.left_out[0] == {
        "layer": "0",
        "reason": "not equalized: hardtanh reads it, which does not pass a scale on",
    }
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), network(images), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_equalized_is_named(images):
    _, found = prepare_equalized(settled(Mobile(), images), images[:1], 7, qat=False)
    assert found.pairs == [("squeeze.1", "squeeze.3")]
    reasons = {row["layer"]: row["reason"].removeprefix("not equalized: ") for row in found.left_out}
    assert reasons == {
        "stem.0": "it is read in several places",
        "depthwise.0": "hardtanh reads it, which does not pass a scale on",
        "squeeze.3": "hardsigmoid reads it, which does not pass a scale on",
        "project.0": "add reads it, which does not pass a scale on",
        "expand.0": "it is read in several places",
        "classifier.3": "it gives the logits",
    }


def test_a_shared_weight_and_a_shuffle_are_left_alone(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
            self.turned, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.turned(self.twice(self.twice(self.first(x)).relu()))
            return self.last(x.transpose(1, 2)).mean((2, 3))

    _, found = prepare_equalized(Shared().eval(), images[:1], 7, qat=False)
    reasons = [row["reason"] for row in found.left_out]
    assert found.pairs == []
    assert [reason.split(": ")[1] for reason in reasons] == [
        "the weight of conv2d_1, which reads it, is computed or shared",
        "its weight is computed or shared",
        "its weight is computed or shared",
        "transpose reads it, which does not pass a scale on",
        "it gives the logits",
    ]


def test_dead_channels_stay_as_they_are(images):
    network = settled(separable(), images)
    with torch.no_grad():
        network[0].weight[:4] = 0
        network[6].weight[:, 8:12] = 0
    prepared, _ = prepare_equalized(network, images[:1], 7, qat=False)
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), network(images), rtol=0, atol=1e-5)


def test_saved_state_and_file_are_the_same_network(images, run_onnx, tmp_path):
    """The weights carry all of it: a network prepared anew needs no equalization of its own."""
    prepared, _ = prepare_equalized(spread(settled(separable(), images), 1.0), images[:1], 7, qat=False)
    calibrate(prepared, [images])
    save_file(prepared.state_dict(), tmp_path / "state.safetensors")
    reloaded = prepare(settled(separable(), images.flip(0), 7), images[:1], 7, qat=False)
    reloaded.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    converted = convert(prepared)
    export_onnx(converted, tmp_path / "model.onnx", tuple(images.shape[1:]))
    with torch.no_grad():
        expected = converted(images)
        assert torch.equal(convert(reloaded)(images), expected)
    assert (run_onnx(tmp_path / "model.onnx", images) - expected).abs().mean() < 0.01 * expected.std()


def test_training_is_refused(images):
    with pytest.raises(ValueError, match="qat=True to equalize"):
        prepare_equalized(settled(Shuffle(), images), images[:1], 7, qat=True)
