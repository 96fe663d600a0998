"""Ratios of single layers: each layer loses its own share, and a mistake is named."""

import pytest
import torch
from torch import nn

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.layer_ratios import ratios_by_layer
from compress.models.widths import read_widths
from compress.utils.errors import UserError
from tests.methods.pruning.plain_cut import prune_filters

EXAMPLE = torch.zeros(1, 1, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 3)).eval()


def widths_after(**settings: object) -> list[int]:
    pruned = network()
    prune_filters(pruned, EXAMPLE, PruneConfig(round_to=1, **settings))
    return [read_widths(pruned)[name][0] for name in ("0", "1", "2")]


def test_a_layer_loses_its_own_share() -> None:
    assert widths_after(ratio=0.2, layer_ratios=["1=0.6"]) == [16, 8, 16]
    assert widths_after(ratio=0.0, layer_ratios=["1=0.6"]) == [20, 8, 20]


def test_a_layer_with_a_ratio_of_0_keeps_all_its_filters_and_says_why() -> None:
    pruned = network()
    left_out = prune_filters(pruned, EXAMPLE, PruneConfig(ratio=0.5, round_to=1, layer_ratios=["1=0"])).left_out
    assert read_widths(pruned)["1"][0] == 20
    assert {"layer": "1", "reason": "its ratio in prune.layer_ratios is 0"} in left_out


def test_the_other_layers_share_what_is_removed_globally() -> None:
    assert widths_after(ratio=0.5, layer_ratios=["1=0.1"], scope="global")[1] == 18
    assert widths_after(ratio=0.0, layer_ratios=["1=0.1"], scope="global") == [20, 18, 20]


def test_coupled_layers_lose_the_smallest_of_their_ratios() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(1, 20, 1), nn.Conv2d(20, 20, 1), nn.Conv2d(20, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x)
            return self.head(x + self.two(x)).mean((2, 3))

    pruned = Residual().eval()
    prune_filters(pruned, EXAMPLE, PruneConfig(ratio=0.5, round_to=1, layer_ratios=["two=0.2"]))
    assert [read_widths(pruned)[name][0] for name in ("one", "two")] == [16, 16]


def test_the_last_pattern_that_names_a_layer_decides() -> None:
    found = ratios_by_layer(["a.*=0.2", "a.1[0-2].conv=0.7"], ["a.1.conv", "a.11.conv", "b"])
    assert found == {"a.1.conv": 0.2, "a.11.conv": 0.7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.*=0.2", r"prune\.layer_ratios with c\.\*=0\.2, whose pattern names no layer; expected names of .* as a, b"),
        ("a=1", r"a=1; expected PATTERN=RATIO with a ratio from 0 to 0\.95"),
        ("a", "a; expected PATTERN=RATIO"),
        ("a=half", "a=half; expected PATTERN=RATIO"),
        ("=0.5", "=0.5; expected PATTERN=RATIO"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ratios_by_layer([text], ["a", "b"])
