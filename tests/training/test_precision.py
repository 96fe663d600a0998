"""bf16 is taken where the device has it, and not for the layers that it would slow down."""

import pytest
import torch
from torch import nn

from compress.training.precision import choose_precision, layers_in

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "device", "has_bf16", "wanted"),
    [
        ("auto", "cpu", True, "float32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "float32"),
        ("float32", "cpu", True, "float32"),
        ("float32", "cuda", True, "float32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_auto_is_bf16_on_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, has_bf16: bool, wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert choose_precision(asked, torch.device(device)) == wanted


def depthwise(stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8)


@pytest.mark.parametrize(
    ("layer", "pixels", "found"),
    [
        (depthwise(), 8, torch.bfloat16),
        (depthwise(stride=2), 8, torch.float32),
        (depthwise(kernel=5), 8, torch.float32),
        (depthwise(), 2, torch.float32),
        (nn.Conv2d(8, 8, 3, 2, 1), 8, torch.bfloat16),
        (nn.Conv2d(8, 8, 5, groups=2), 8, torch.bfloat16),
    ],
)
def test_bf16_is_left_to_the_layers_that_it_makes_faster(layer: nn.Conv2d, pixels: int, found: torch.dtype) -> None:
    images = torch.randn(2, 8, pixels, pixels, generator=torch.Generator().manual_seed(1))
    with layers_in("bf16", CPU):
        low = layer(images)
        again = layer(images.bfloat16())  # as the layer before gives them
    with layers_in("float32", CPU):
        whole = layer(images)
    assert (low.dtype, again.dtype, whole.dtype) == (found, found, torch.float32)
    torch.testing.assert_close(low.float(), whole, rtol=0.02, atol=0.02)
    if found == torch.float32:
        assert torch.equal(low, whole)
    again.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
