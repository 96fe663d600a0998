"""The flow itself: what prepare, calibrate, train and convert promise."""

import copy

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import require_quantized
from compress.methods.quantization.pt2e import (
    calibrate,
    convert,
    freeze_batch_norm,
    freeze_observers,
    prepare,
    without_rounding,
)
from compress.models.graph.batch_norm import ConvBatchNorm, conv_batch_norms

from .conftest import NETWORKS
from .tiny_networks import BATCH_NORM, DROPOUT, Residual, Shuffle, conv_bn, settled


def train(prepared: nn.Module, images: torch.Tensor, steps: int) -> list[float]:
    labels = torch.arange(len(images)) % 10
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05, 0.9)
    prepared.train()
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(prepared(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_saved_state_converts_to_the_same_network(quantized, images, tmp_path, name, qat):
    made = quantized(name, qat)
    prepared = copy.deepcopy(made.prepared)
    if qat:
        train(prepared, images, 2)
        freeze_batch_norm(prepared)
        freeze_observers(prepared)
        train(prepared, images, 1)
    save_file(prepared.state_dict(), tmp_path / "state.safetensors")
    other = settled(NETWORKS[name](), images.flip(0), seed=7)
    reloaded = prepare(other, images[:1], weight_bits=7, qat=qat)
    reloaded.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    with torch.no_grad():
        assert torch.equal(convert(reloaded)(images), convert(prepared)(images))


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_rounding_it_is_the_float_network(quantized, images, name, qat):
    made = quantized(name, qat)
    state = copy.deepcopy(made.prepared.state_dict())
    with torch.no_grad():
        assert torch.allclose(without_rounding(made.prepared)(images), made.network(images), atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in made.prepared.state_dict().items())


def test_training_keeps_eps_momentum_and_dropout(quantized):
    prepared = copy.deepcopy(quantized("residual", True).prepared)
    for _ in range(2):
        prepared.train()
        prepared.eval()
    blocks = conv_batch_norms(prepared)
    assert len(blocks) == 5
    for block in blocks:
        assert {"eps": block.batch_norm.eps, "momentum": block.batch_norm.momentum} == BATCH_NORM
    assert [layer.p for layer in prepared.modules() if isinstance(layer, nn.Dropout)] == [DROPOUT]


@pytest.mark.parametrize("bias", [False, True])
def test_training_form_equals_conv_and_batch_norm(images, bias):
    """Without fake quantization: outputs, gradients and running statistics are those of the plain pair."""
    torch.manual_seed(0)
    conv, batch_norm = nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6, **BATCH_NORM)
    nn.init.uniform_(batch_norm.weight, -1, 1)
    batch_norm.weight.data[2] = 0  # a channel that training switched off must not divide by zero
    plain = copy.deepcopy(nn.Sequential(conv, batch_norm))
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    block = ConvBatchNorm(conv.weight, conv.bias, options, batch_norm)
    for mode in (True, False):
        expected, received = plain.train(mode)(images), block.train(mode)(images)
        assert torch.allclose(received, expected, atol=1e-5)
        (gradient,) = torch.autograd.grad(received.square().mean(), conv.weight)
        (expected_gradient,) = torch.autograd.grad(expected.square().mean(), plain[0].weight)
        assert torch.allclose(gradient, expected_gradient, atol=1e-5)
    assert torch.allclose(batch_norm.running_mean, plain[1].running_mean, atol=1e-6)
    assert torch.allclose(batch_norm.running_var, plain[1].running_var, atol=1e-6)


def test_simulation_equals_converted_network(quantized, images):
    prepared = copy.deepcopy(quantized("residual", True).prepared)
    train(prepared, images, 3)
    with torch.no_grad():
        simulated, converted = prepared.eval()(images), convert(prepared)(images)
    # Biases are rounded to int32 in the converted network only; a value on the edge may fall to the other side.
    assert (simulated - converted).abs().mean() < 0.005 * converted.std()


def test_training_lowers_the_loss_and_converts(quantized, images):
    prepared = copy.deepcopy(quantized("mobile", True).prepared)
    losses = train(prepared, images, 10)
    assert losses[-1] < losses[0]
    assert convert(prepared)(images).isfinite().all()


def test_frozen_batch_norm_keeps_statistics_and_learns_on(quantized, images):
    prepared = copy.deepcopy(quantized("residual", True).prepared)
    train(prepared, images, 1)
    freeze_batch_norm(prepared)
    before = copy.deepcopy(prepared.state_dict())
    train(prepared, images, 1)
    after = prepared.state_dict()
    changed = {name.split(".")[-1] for name in after if not torch.equal(before[name], after[name])}
    assert {"weight", "bias"} <= changed
    assert not {"running_mean", "running_var"} & changed


def test_ranges_move_in_training_only_and_not_once_frozen(quantized, images):
    prepared = copy.deepcopy(quantized("residual", True).prepared)

    def ranges() -> list[torch.Tensor]:
        state = {name: value for name, value in prepared.state_dict().items() if name.endswith((".scale", "max_val"))}
        return [value.clone() for value in state.values() if value.numel() == 1]  # activations: one range a tensor

    def moved(before: list[torch.Tensor]) -> bool:
        return not all(map(torch.equal, before, ranges()))

    start = ranges()
    with torch.no_grad():
        prepared.eval()(10 * images)
        assert not moved(start)
        prepared.train()(10 * images)
        assert moved(start)
        freeze_observers(prepared)
        frozen = ranges()
        prepared(100 * images)
        assert not moved(frozen)


def test_weight_scales_are_those_of_the_last_step(quantized, images):
    """The optimizer's last step moves the weights after the last forward pass measured them."""
    prepared = copy.deepcopy(quantized("residual", True).prepared)
    with torch.no_grad():
        prepared.linear.weight *= 3
    converted = convert(prepared)
    (linear,) = (node for node in converted.graph.nodes if node.target is torch.ops.aten.linear.default)
    scale = getattr(converted, linear.args[1].args[1].target)
    assert torch.allclose(scale, prepared.linear.weight.abs().amax(1) / 64)


def test_the_given_network_stays_as_it_was(images):
    network = settled(Residual(), images).train()
    before = copy.deepcopy(network.state_dict())
    prepared = prepare(network, images[:1], weight_bits=7, qat=True)
    calibrate(prepared, [images])
    train(prepared, images, 1)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_convert_without_ranges_says_so(images):
    prepared = prepare(settled(Shuffle(), images), images[:1], weight_bits=8, qat=False)
    with pytest.raises(ValueError, match="calibrate"):
        convert(prepared)


def test_weight_bits_are_checked(images):
    with pytest.raises(ValueError, match="weight_bits=4"):
        prepare(conv_bn(3, 4, 3, nn.ReLU()).eval(), images[:1], weight_bits=4, qat=False)


def test_batch_norm_without_convolution_trains_and_stays(images):
    """Batch norm in front of its convolution cannot fold: it stays, float, and follows train and eval."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3, **BATCH_NORM), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    prepared = prepare(network, images[:1], weight_bits=7, qat=True)
    calibrate(prepared, [images])
    prepared.train()(images + 3)
    with torch.no_grad():
        prepared.eval()
        expected, received = prepared(images), convert(prepared)(images)
    (batch_norm,) = (layer for layer in prepared.modules() if isinstance(layer, nn.BatchNorm2d))
    assert batch_norm.running_mean.mean() == pytest.approx(3 * BATCH_NORM["momentum"], rel=0.2)
    assert (received - expected).abs().max() < 0.05


def test_a_channel_without_negative_weights_keeps_its_zero_point(images, tmp_path):
    """A zero point other than 0 costs ONNX Runtime its depthwise kernel: ten times the time."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    with torch.no_grad():
        network[1].weight.abs_()
    prepared = prepare(network, images[:1], weight_bits=7, qat=True)
    calibrate(prepared, [images])
    train(prepared, images, 1)
    export_onnx(convert(prepared), tmp_path / "model.onnx", tuple(images.shape[1:]))
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    int8 = [node for node in weights if constants[node.input[0]].dtype == "int8"]
    assert len(int8) == 3
    assert all((constants[node.input[2]] == 0).all() for node in int8)


class Dropped(nn.Module):
    """Dropout between two convolutions, as in SqueezeNet."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(self.first(x).relu())).mean((2, 3))


def test_what_dropout_scales_up_in_training_has_the_range_of_the_file(images, tmp_path):
    """A range of its own behind a dropout would be twice too wide, and would cost the layer its int8 kernel."""
    prepared = prepare(settled(Dropped(), images), images[:1], weight_bits=7, qat=True)
    train(prepared, images, steps=3)
    path = tmp_path / "model.onnx"
    export_onnx(convert(prepared), path, (3, 16, 16))
    require_quantized(path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == 3  # of the image and of both convolutions
