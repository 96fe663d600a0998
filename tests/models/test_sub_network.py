"""Kernels that are cut to their centre compute what they do with a rim of zeros, on outputs of the same size."""

import pytest
import torch
from torch import nn

from compress.models.sub_network import cut_kernels, kernel_sizes


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.Conv2d(4, 4, 5, padding=2, groups=4), [5, 3]),
        (nn.Conv2d(4, 2, 7, padding=3, stride=2), [7, 5, 3]),
        (nn.Conv2d(4, 2, 5, padding=4, dilation=2), [5, 3]),
        (nn.Conv2d(4, 2, 7, padding=1), [7, 5]),  # 3 would need a padding below 0
        (nn.Conv2d(4, 2, 3, padding=1), []),
        (nn.Conv2d(4, 2, 5), []),
        (nn.Conv2d(4, 2, (1, 5), padding=(0, 2)), []),
        (nn.Conv2d(4, 2, 5, padding="same"), []),
        (nn.Conv2d(4, 2, 5, padding=2, padding_mode="reflect"), []),
        (nn.Linear(4, 2), []),
    ],
)
def test_sizes_that_a_kernel_can_have(layer: nn.Module, sizes: list[int]) -> None:
    assert kernel_sizes(layer) == sizes


@pytest.mark.parametrize("options", [{"groups": 4}, {"stride": 2}, {"dilation": 2, "padding": 6}, {"bias": False}])
def test_a_cut_kernel_is_one_with_a_rim_of_zeros(options: dict) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 7, **({"padding": 3} | options))
    images = torch.randn(2, 4, 15, 14)
    with torch.no_grad():
        layer.weight[:, :, [0, 1, 5, 6]] = 0
        layer.weight[:, :, :, [0, 1, 5, 6]] = 0
        expected = layer(images)
        cut_kernels(nn.ModuleDict({"layer": layer}), {"layer": 3})
        assert layer.weight.shape[2:] == (3, 3)
        assert torch.allclose(layer(images), expected, atol=1e-6)


def test_another_size_is_refused() -> None:
    layer = nn.Conv2d(4, 4, 5, padding=2)
    with pytest.raises(ValueError, match=r"received a kernel of 4 for layer; expected one of \[5, 3\]"):
        cut_kernels(nn.ModuleDict({"layer": layer}), {"layer": 4})
