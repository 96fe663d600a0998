"""Layers are paired by the resolution of their outputs, whatever their names."""

import pytest
import torch
from torch import nn

from compress.methods.distillation.matching import maps_by_reduction, match_by_resolution
from compress.models import Architecture, build
from compress.utils.errors import UserError

IMAGE = torch.zeros(1, 3, 32, 32)


def named(model: str, stem: str = "small") -> nn.Module:
    torch.manual_seed(0)
    return build(Architecture(model, stem, 3, 10, 32))


def test_the_blocks_of_a_resnet_are_found() -> None:
    assert maps_by_reduction(named("resnet20"), IMAGE) == {1: "layer1", 2: "layer2", 4: "layer3"}


def test_another_family_is_paired() -> None:
    pairs = match_by_resolution(named("mobilenet_v2"), named("resnet20"), IMAGE)
    assert list(pairs.values()) == ["layer1", "layer2", "layer3"]
    assert all(name.startswith("features.") for name in pairs)
    back = match_by_resolution(named("resnet20"), named("mobilenet_v2"), IMAGE)
    assert back == {student: teacher for teacher, student in pairs.items()}


def test_a_network_is_paired_with_itself() -> None:
    network = named("vgg16_bn")
    pairs = match_by_resolution(network, network, IMAGE)
    assert pairs
    assert all(student == teacher for student, teacher in pairs.items())


def test_no_more_than_the_last_four_and_none_of_one_pixel() -> None:
    layers = [nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(6)]
    pairs = match_by_resolution(nn.Sequential(*layers), nn.Sequential(*layers), torch.zeros(1, 3, 64, 64))
    assert pairs == {str(number): str(number) for number in range(1, 5)}  # 16, 8, 4 and 2 pixels a side; not 32 and 1


def test_of_a_layer_that_is_called_twice_the_last_call_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.pool = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.act(self.pool(self.act(self.first(images))))

    assert maps_by_reduction(Twice(), IMAGE) == {1: "first", 2: "act"}


def test_the_answers_of_a_detector_are_no_features() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1)), nn.Conv2d(4, 8, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(images)).flatten(2)

    assert maps_by_reduction(Detector(), IMAGE) == {2: "backbone.0"}


def test_what_is_inside_of_attention_is_no_map() -> None:
    """Its tensors (N, heads, T, D) have four dimensions, too."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Identity()

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            tokens = maps.flatten(2)  # (N, C, T)
            scores = self.scores((tokens.mT @ tokens)[:, None])[:, 0]  # (N, 1, T, T) in it: as a map of 16 x 16
            return (tokens @ scores).unflatten(2, maps.shape[2:])

    class Rows(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return maps.permute(0, 2, 3, 1)

    layers = [nn.Conv2d(3, 6, 3, stride=8, padding=1), Attention(), Rows()]
    assert maps_by_reduction(nn.Sequential(*layers), IMAGE) == {8: "1"}


def test_a_network_without_maps_is_refused_with_the_resolutions_of_both() -> None:
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(UserError, match=r"student's have the resolutions 1/1, 1/2, 1/4 and .* teacher's none"):
        match_by_resolution(named("resnet20"), vectors, IMAGE)
