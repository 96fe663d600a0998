"""Limits on the file that ships: its measured figure counts, to which predictions are fitted; energy is estimated."""

import copy
from dataclasses import dataclass, field

import pytest
from torch import nn

from compress.evaluation.energy_estimate import energy_cost
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.cost import Cost, macs_cost
from compress.methods.pruning.cut import choose_cut
from compress.models.layer_calls import LayerCall, layer_calls
from compress.utils.errors import UserError
from tests.methods.pruning.test_channel_groups import EXAMPLE
from tests.methods.pruning.test_cut import config_of, cut_of, macs, one_step_larger, resnet, trials_of
from tests.methods.pruning.test_importance import trained

MS_PER_MAC = 1e-6
CACHES = [2048, 65536]  # so that layers lie in both, and pruning brings some nearer


@dataclass
class FakeFile:
    """A file whose latency is its MACs' and whose size its MACs too; both are measured `factor` times as large."""

    whole: nn.Module
    factor: float = 1.0
    measured: list[float] = field(default_factory=list)

    @property
    def teacher_latency_ms(self) -> float:
        return macs(self.whole) * MS_PER_MAC

    def cost(
        self, name: str, network: nn.Module, calls: dict[str, list[LayerCall]], other: nn.Module | None = None
    ) -> Cost:
        if name == "estimated_energy_mj":
            return energy_cost(calls, True, CACHES, 0)
        layers = macs_cost(calls)
        scale = MS_PER_MAC if name == "latency_ms" else 1.0
        return Cost(lambda layer, width: scale * layers.of_layer(layer, width))

    def measure(self, network: nn.Module) -> dict[str, float]:
        share = macs(network) / macs(self.whole)
        factor = 1 + (self.factor - 1) * (1 - share)
        latency = macs(network) * MS_PER_MAC * factor
        self.measured.append(latency)
        return {
            "size_bytes": macs(network) * factor,
            "latency_ms": latency,
            "speedup": self.teacher_latency_ms / latency,
        }


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("name", ["latency_ms", "speedup", "size_bytes"])
def test_a_limit_on_the_file_is_met_by_its_measured_figure(name: str, factor: float) -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network), factor)
    asked = {"latency_ms": 0.6 * file.teacher_latency_ms, "speedup": 1 / 0.6, "size_bytes": int(0.6 * macs(network))}
    config = config_of(scope="global", target={name: asked[name]})
    prunable, cut = cut_of(network, config, shipped=lambda: file)
    target = cut.notes["target"]
    filled = target["measured"][name] / asked[name]
    filled = 1 / filled if name == "speedup" else filled
    assert 0.9 <= filled <= 1
    pruned, _ = prunable.pruned_copy(cut.left, cut.scores)
    assert target["measured"] == FakeFile(network, factor).measure(pruned)
    assert target["reached"][name] == target["measured"][name]
    key = "size_bytes" if name == "size_bytes" else "latency_ms"
    share = macs(pruned) / macs(network)
    assert target["measured"][key] / target["predicted"][key] == pytest.approx(1 + (factor - 1) * (1 - share))
    assert len([row for row in target["search"] if row["position"] is None]) == len(file.measured) <= 3


def test_the_nearest_is_taken_where_no_fit_is_within_the_limit() -> None:
    """What is measured ignores the network: each time less above the limit."""
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network))
    highest = 0.8 * file.teacher_latency_ms
    over = iter([1.3, 1.05, 1.1])
    found: list[float] = []

    def measure(pruned: nn.Module) -> dict[str, float]:
        found.append(highest * next(over))
        return {"size_bytes": 1.0, "latency_ms": found[-1], "speedup": 1.0}

    file.measure = measure
    _, cut = cut_of(network, config_of(target={"latency_ms": highest}), shipped=lambda: file)
    assert len(found) == 3
    assert cut.notes["target"]["measured"]["latency_ms"] == found[1]
    rows = [row for row in cut.notes["target"]["search"] if row["position"] is None]
    assert cut.notes["target"]["reached"]["macs"] == rows[1]["macs"]
    assert not any(row["met"] for row in rows)


def test_an_unreachable_file_is_named_in_measured_figures() -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network), 2.0)
    for target in ({"latency_ms": 0.45 * file.teacher_latency_ms}, {"speedup": 1 / 0.45}):
        ((name, value),) = target.items()
        config = config_of(target=target, layer_ratios=["layer1*=0"])
        with pytest.raises(UserError) as caught:
            cut_of(copy.deepcopy(network), config, shipped=lambda: file)
        assert f"prune.target.{name}={value:.4g}, while" in str(caught.value)
        assert "has latency_ms" in str(caught.value)


def test_files_are_measured_in_the_last_step_alone() -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network))
    trials = trials_of(copy.deepcopy(network), shipped=lambda: file)
    config = config_of(target={"latency_ms": 0.5 * file.teacher_latency_ms}, steps=2)
    choose_cut(PrunableNetwork(network, EXAMPLE), config, trials, 1)
    assert file.measured == []


@pytest.mark.parametrize("scope", ["local", "sensitivity"])
def test_a_share_of_energy_is_reached_and_hardly_undercut_without_a_file(scope: str) -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network))
    energy = energy_cost(layer_calls(network, EXAMPLE), True, CACHES, 0)
    config = config_of(scope=scope, target={"estimated_energy_share": 0.5})
    prunable, cut = cut_of(network, config, shipped=lambda: file)
    share = lambda left: energy.of(prunable.widths(left)) / energy.of(prunable.before)
    assert share(cut.left) <= 0.5
    assert max(share(left) for left in one_step_larger(prunable, cut.left)) > 0.5
    target = cut.notes["target"]
    assert target["reached"]["estimated_energy_share"] == share(cut.left)
    assert (target["predicted"], target["measured"], file.measured) == ({}, {}, [])


def test_energy_that_cannot_be_reached_names_what_can() -> None:
    network = trained(resnet)
    config = config_of(target={"estimated_energy_share": 0.05}, layer_ratios=["layer1*=0"])
    with pytest.raises(UserError, match=r"prune\.target\.estimated_energy_share=0\.05, while .* has estimated_energy"):
        cut_of(network, config, shipped=lambda: FakeFile(copy.deepcopy(network)))
