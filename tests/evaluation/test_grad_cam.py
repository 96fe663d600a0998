"""Grad-CAM finds what a network was built to look at."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.evaluation.grad_cam import grad_cam, mean_correlation
from compress.models.graph.capture import capture


class Corners(nn.Module):
    """Class 0 is told by the first channel's brightness, class 1 by the second's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.linear = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
            self.linear.weight.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def image() -> Tensor:
    """The first channel is bright in the upper left, the second, less, in the lower right."""
    image = torch.zeros(1, 2, 8, 8)
    image[0, 0, :4, :4] = 4.0
    image[0, 1, 4:, 4:] = 2.0
    return image


@pytest.mark.parametrize("captured", [False, True])
def test_the_map_shows_what_speaks_for_the_class(image: Tensor, captured: bool) -> None:
    network = Corners().eval()
    network = capture(network, image) if captured else network
    maps = grad_cam(network, image.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    assert maps.shape == (2, 8, 8)
    assert not maps.requires_grad
    assert torch.allclose(maps[0], image[0, 0] / 4)  # each scaled by its own largest value
    assert torch.allclose(maps[1], image[0, 1] / 2)


def test_the_map_is_as_large_as_the_image() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    maps = grad_cam(network, torch.randn(5, 3, 17, 19), torch.zeros(5, dtype=torch.int64))
    assert maps.shape == (5, 17, 19)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_without_rows_and_columns_there_is_no_map() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert grad_cam(network, torch.randn(2, 3, 2, 2), torch.tensor([0, 1])) is None


def test_maps_agree_with_themselves_and_not_with_their_opposites() -> None:
    maps = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert mean_correlation(maps, maps) == pytest.approx(1)
    assert mean_correlation(maps, 3 * maps + 2) == pytest.approx(1)
    assert mean_correlation(maps, 1 - maps) == pytest.approx(-1)
    expected = [
        np.corrcoef(one.flatten(), other.flatten())[0, 1] for one, other in zip(maps, maps.flip(0), strict=True)
    ]
    assert mean_correlation(maps, maps.flip(0)) == pytest.approx(np.mean(expected))


def test_maps_that_are_the_same_everywhere_are_left_out() -> None:
    maps = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    flat = torch.stack([maps[0], torch.zeros(3, 3)])
    assert mean_correlation(maps, flat) == pytest.approx(1)
    assert mean_correlation(torch.zeros(2, 3, 3), maps) is None
