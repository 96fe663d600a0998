"""The vectorized fake quantization is torch's own, to the bit, and trains on the same gradients."""

import pytest
import torch
from torchao.quantization.pt2e.observer import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

from compress.methods.quantization.fake_quantize import RoundToGrid, RuntimeFakeQuantize, WeightFakeQuantize


def images(seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(2, 5, 4, 3, generator=generator) + 1).contiguous(memory_format=torch.channels_last)


def activation_quantizer() -> RuntimeFakeQuantize:
    return RuntimeFakeQuantize(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        dtype=torch.uint8,
        qscheme=torch.per_tensor_affine,
        averaging_constant=0.25,
    )


@pytest.mark.parametrize(("scale", "zero_point"), [(0.02, 100), (0.011, 0), (0.05, 255), (1e-4, 7)])
def test_rounds_as_torch_does_and_cuts_the_same_gradients(scale: float, zero_point: int) -> None:
    ours, torchs = (images().requires_grad_() for _ in range(2))
    weight = images(seed=1)
    scale = torch.tensor([scale])
    expected = torch.fake_quantize_per_tensor_affine(torchs, scale, torch.tensor([zero_point], dtype=torch.int), 0, 255)
    found = RoundToGrid.apply(ours, scale, -zero_point, 255 - zero_point)
    assert torch.equal(found, expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert torch.equal(ours.grad, torchs.grad)
    assert int((ours.grad == 0).sum()) > 0, "nothing was cut off: this grid tests no gradient"


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 1, 3, 3), (6, 5)])
def test_a_weight_is_rounded_as_torch_does(shape: tuple[int, ...]) -> None:
    quantizer = WeightFakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-64,
        quant_max=64,
        dtype=torch.int8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 2, 6).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    weight.requires_grad_()
    found = quantizer(weight)
    expected = torch.fake_quantize_per_channel_affine(
        weight, quantizer.scale, quantizer.zero_point, 0, quantizer.quant_min, quantizer.quant_max
    )
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert torch.equal(weight.grad, 2 * found.detach()), "no weight lies outside its own channel's range"


def test_the_moving_range_is_that_of_the_fused_operator() -> None:
    quantizer = activation_quantizer().train()
    low, high = torch.tensor(float("inf")), torch.tensor(float("-inf"))
    scale, zero_point = torch.ones(1), torch.zeros(1, dtype=torch.int)
    on = torch.ones(1, dtype=torch.long)
    for seed in range(4):
        batch = images(seed, spread=1.0 + seed)
        expected = torch.fused_moving_avg_obs_fake_quant(
            batch, on, on, low, high, scale, zero_point, 0.25, 0, 255, -1, False, False
        )
        assert torch.equal(quantizer(batch), expected)
    assert torch.equal(quantizer.scale, scale)
    assert torch.equal(quantizer.zero_point, zero_point)


def test_frozen_or_in_eval_mode_no_range_moves() -> None:
    quantizer = activation_quantizer().train()
    quantizer(images())
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(images(spread=50.0))
    quantizer.train().disable_observer()
    quantizer(images(spread=50.0))
    frozen = quantizer.state_dict()
    assert all(torch.equal(frozen[name], state[name]) for name in state if name != "observer_enabled")
    quantizer.enable_observer()
    quantizer(images(spread=50.0))
    assert not torch.equal(quantizer.scale, state["scale"])


def test_without_fake_quantization_values_pass_as_they_are() -> None:
    quantizer = activation_quantizer().train()
    quantizer.disable_fake_quant()
    assert torch.equal(quantizer(images()), images())
    assert bool(quantizer.activation_post_process.max_val > 1), "it still observes"
