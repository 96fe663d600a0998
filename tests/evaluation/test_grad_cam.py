"""Grad-CAM finds what a network was built to look at."""

import pytest
import torch
from torch import Tensor, nn

from compress.evaluation.grad_cam import grad_cam
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
