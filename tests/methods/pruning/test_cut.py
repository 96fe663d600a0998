"""What a target chooses: the network is the smallest cut that meets it, and what cannot be met says what can."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.config.stage_settings import PruneConfig, PruneTargetConfig
from compress.evaluation.flops import count_cost
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.cut import Cut, Trials, choose_cut
from compress.methods.pruning.limits import Whole
from compress.models import Architecture, build
from compress.models.widths import read_widths
from compress.utils.errors import UserError
from tests.methods.pruning.networks import SHAPE
from tests.methods.pruning.test_channel_groups import EXAMPLE, sum_of_concatenation
from tests.methods.pruning.test_importance import labelled, trained
from tests.methods.pruning.test_sensitivity import DISTANCE, images
from tests.methods.pruning.test_sparsity import plain

SCOPES = ["local", "global", "isomorphic", "sensitivity"]


def macs(network: nn.Module) -> int:
    return count_cost(network, SHAPE)[1]


def no_validation(network: nn.Module) -> float:
    raise AssertionError("nothing asked for the validation metric")


def trials_of(network: nn.Module, **parts: Any) -> Trials:
    params, count = count_cost(network, SHAPE)
    defaults = {
        "labelled": labelled(),
        "images": images,
        "distance": DISTANCE,
        "val_percent": no_validation,
        "whole": Whole(read_widths(network), count, params),
        "whole_val_percent": 90.0,
        "shipped": lambda: None,
    }
    return Trials(**(defaults | parts))


def config_of(**settings: Any) -> PruneConfig:
    target = PruneTargetConfig(**settings.pop("target", {}))
    return PruneConfig(**{"target": target, "round_to": 1, "ratio": 0.5} | settings)


def cut_of(network: nn.Module, config: PruneConfig, **parts: Any) -> tuple[PrunableNetwork, Cut]:
    prunable = PrunableNetwork(network, EXAMPLE, config.round_to)
    return prunable, choose_cut(prunable, config, trials_of(copy.deepcopy(network), **parts))


def resnet() -> nn.Module:
    return build(Architecture("resnet8", "small", 3, 5))


def one_step_larger(prunable: PrunableNetwork, left: list[int]) -> list[list[int]]:
    return [
        [*left[:at], left[at] + 1, *left[at + 1 :]]
        for at, group in enumerate(prunable.groups)
        if left[at] < group.channels
    ]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["macs_share", "params_share"])
def test_a_share_is_reached_and_hardly_undercut(scope: str, name: str) -> None:
    network = trained(plain)
    for share in (0.7, 0.35):
        prunable, cut = cut_of(copy.deepcopy(network), config_of(scope=scope, target={name: share}))
        reached = cut.notes["target"]["reached"]
        pruned, _ = prunable.pruned_copy(cut.left, cut.scores)
        params, count = count_cost(pruned, SHAPE)
        assert (reached["params"], reached["macs"]) == (params, count)
        assert reached[name] <= share
        whole = Whole(prunable.before, macs(network), sum(value.numel() for value in network.parameters()))
        larger = [whole.costs(prunable, prunable.widths(left))[name] for left in one_step_larger(prunable, cut.left)]
        assert max(larger) > share
        assert cut.notes["target"]["asked"] == {name: share}
        assert all(set(row) == {"position", name, "met"} for row in cut.notes["target"]["search"])
        assert ("sensitivity" in cut.notes) == (scope == "sensitivity")


@pytest.mark.parametrize("scope", SCOPES)
def test_the_tightest_of_several_targets_decides(scope: str) -> None:
    for target, tightest in (
        ({"macs_share": 0.4, "params_share": 0.9}, "macs_share"),
        ({"macs_share": 0.9, "params_share": 0.4}, "params_share"),
    ):
        _, cut = cut_of(trained(plain), config_of(scope=scope, target=target))
        reached = cut.notes["target"]["reached"]
        assert all(reached[name] <= highest for name, highest in target.items())
        assert reached[tightest] > 0.75 * target[tightest]
        _, alone = cut_of(trained(plain), config_of(scope=scope, target={tightest: target[tightest]}))
        assert alone.left == cut.left


@pytest.mark.parametrize("scope", SCOPES)
def test_layers_left_out_stay_whole_under_a_target(scope: str) -> None:
    config = config_of(scope=scope, target={"macs_share": 0.7}, layer_ratios=["0=0", "8=0.5"])
    prunable, cut = cut_of(trained(plain), config)
    left = {group.layers[0]: count for group, count in zip(prunable.groups, cut.left, strict=True)}
    assert (left["0"], left["8"]) == (8, 6)
    assert left["3"] < 16
    assert cut.notes["target"]["reached"]["macs_share"] <= 0.7


@pytest.mark.parametrize("build_network", [plain, sum_of_concatenation])
def test_a_ratio_by_sensitivity_is_that_of_all_filters(build_network: Any) -> None:
    prunable, cut = cut_of(trained(build_network), config_of(scope="sensitivity", ratio=0.5))
    channels = sum(group.channels for group in prunable.groups)
    assert channels // 2 - 1 <= sum(cut.left) <= channels // 2
    assert list(cut.notes) == ["sensitivity"]


def test_what_cannot_be_reached_names_what_can() -> None:
    with pytest.raises(UserError) as caught:
        cut_of(trained(plain), config_of(target={"macs_share": 0.05, "params_share": 0.9}, layer_ratios=["0=0"]))
    message = str(caught.value)
    assert "prune.target.macs_share=0.05, while" in message
    assert "params_share" not in message
    network = trained(plain)
    prunable = PrunableNetwork(network, EXAMPLE)
    smallest = prunable.widths([group.channels if "0" in group.layers else 1 for group in prunable.groups])
    costs = trials_of(network).whole.costs(prunable, smallest)
    assert f"has macs_share {costs['macs_share']:.4g}" in message


def test_a_ratio_that_layers_left_out_forbid_is_named() -> None:
    config = config_of(scope="sensitivity", ratio=0.9, layer_ratios=["0=0", "3=0"])
    with pytest.raises(UserError, match=r"received prune\.ratio, while the smallest network .* filters_share 0\.\d+"):
        cut_of(trained(plain), config)


def drop_of(network: nn.Module) -> float:
    """A point of the metric for every filter that the second layer lacks, none for those of others."""
    return 90.0 - (16 - read_widths(network)["3"][0])


@pytest.mark.parametrize(("most", "left"), [(0.0, 16), (3.0, 13), (7.5, 9), (100, 1)])
def test_the_smallest_network_that_keeps_the_metric(most: float, left: int) -> None:
    prunable, cut = cut_of(trained(plain), config_of(target={"max_drop_points": most}), val_percent=drop_of)
    found = prunable.widths(cut.left)["3"][0]
    assert found == left
    target = cut.notes["target"]
    assert target["reached"]["drop_points"] == 16 - left
    rows = [row for row in target["search"] if row["met"]]
    if rows:
        assert min(row["macs"] for row in rows) == target["reached"]["macs"]
    assert all(row["met"] == (row["drop_points"] <= most) for row in target["search"])


def test_a_drop_is_measured_after_the_refit() -> None:
    network, seen = trained(plain), []

    def val_percent(pruned: nn.Module) -> float:
        with torch.no_grad():
            error = DISTANCE(pruned(images()), network(images())).mean().item()
        seen.append(error)
        return 90.0

    prunable, cut = cut_of(
        copy.deepcopy(network), config_of(target={"macs_share": 0.6, "max_drop_points": 1.0}), val_percent=val_percent
    )
    bare, _ = prunable.pruned_copy(cut.left, cut.scores)
    with torch.no_grad():
        before = DISTANCE(bare(images()), network(images())).mean().item()
    assert len(seen) == 1
    assert seen[0] < 0.5 * before


def test_a_cost_that_breaks_the_drop_is_refused() -> None:
    config = config_of(target={"macs_share": 0.3, "max_drop_points": 2.0})
    message = (
        r"max_drop_points=2 with limits .* loses \d+\.00 points after its refit.* raise max_drop_points to \d+\.00"
    )
    with pytest.raises(UserError, match=message):
        cut_of(trained(plain), config, val_percent=drop_of)
    gentle = config_of(target={"macs_share": 0.7, "max_drop_points": 8.0})
    _, cut = cut_of(trained(plain), gentle, val_percent=drop_of)
    assert 0 < cut.notes["target"]["reached"]["drop_points"] <= 8


def test_steps_go_alike_on_a_logarithmic_scale() -> None:
    """Three steps to an eighth: a half each time, of the network that the step before left."""
    network = trained(resnet)
    trials, config = trials_of(copy.deepcopy(network)), config_of(target={"macs_share": 0.125}, steps=3)
    shares = [1.0]
    for step in (1, 2, 3):
        prunable = PrunableNetwork(network, EXAMPLE)
        cut = choose_cut(prunable, config, trials, step)
        prunable.remove(prunable.lowest(cut.left, cut.scores))
        wanted = shares[-1] * (0.125 / shares[-1]) ** (1 / (4 - step))
        shares.append(macs(network) / trials.whole.macs)
        assert cut.notes["target"]["reached"]["macs_share"] == shares[-1]
        assert 0.9 * wanted < shares[-1] <= wanted


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("build_network", [plain, sum_of_concatenation])
def test_steps_of_a_ratio_end_with_the_ratio(build_network: Any, scope: str) -> None:
    network = trained(build_network)
    trials, config = trials_of(copy.deepcopy(network)), config_of(ratio=0.75, scope=scope, steps=2)
    channels = []
    for step in (1, 2):
        prunable = PrunableNetwork(network, EXAMPLE)
        before = sum(group.channels for group in prunable.groups)
        cut = choose_cut(prunable, config, trials, step)
        prunable.remove(prunable.lowest(cut.left, cut.scores))
        channels += [before, sum(cut.left)]
    assert channels[1] == channels[2]
    assert channels[1] == pytest.approx(0.5 * channels[0], abs=1)
    assert channels[3] == pytest.approx(0.25 * channels[0], abs=1)


def test_a_network_under_search_stays_as_it_is() -> None:
    network = trained(resnet)
    state: dict[str, Tensor] = copy.deepcopy(network.state_dict())
    config = config_of(scope="sensitivity", target={"macs_share": 0.5, "max_drop_points": 99.0})
    cut_of(network, config, val_percent=lambda pruned: 89.0)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
