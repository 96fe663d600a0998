"""Limits on the file that ships: ranks fall until its measured size, latency or speed meets them, without a clock."""

import copy
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from compress.config.stage_settings import FactorizeConfig, PruneTargetConfig
from compress.export.onnx import export_onnx
from compress.methods.factorization.choice import RankChoice, choose_ranks
from compress.methods.factorization.factors import SPATIAL
from compress.methods.factorization.ranks import FactorizableNetwork
from compress.methods.factorization.refit import decompose_layers
from compress.methods.pruning.cost import bytes_cost
from compress.utils.errors import UserError
from tests.methods.pruning.networks import SHAPE
from tests.methods.pruning.test_channel_groups import EXAMPLE
from tests.methods.pruning.test_cut import macs, resnet, trials_of
from tests.methods.pruning.test_cut_of_file import FakeFile
from tests.methods.pruning.test_importance import trained


def choice_of(network: nn.Module, file: FakeFile, scope: str = "local", **target: float) -> tuple[Any, RankChoice]:
    config = FactorizeConfig(target=PruneTargetConfig(**target), scope=scope, round_to=2, reconstruction_samples=0)
    factorizable = FactorizableNetwork(network, EXAMPLE, SPATIAL, 2)
    trials = trials_of(copy.deepcopy(network), shipped=lambda: file)
    return factorizable, choose_ranks(factorizable, config, trials)


def factorized(factorizable: FactorizableNetwork, left: list[int]) -> nn.Module:
    network = copy.deepcopy(factorizable.network)
    decompose_layers(network, factorizable.factors(left))
    return network


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("name", ["latency_ms", "speedup", "size_bytes"])
def test_a_limit_on_the_file_is_met_by_its_measured_figure(name: str, factor: float) -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network), factor)
    asked = {"latency_ms": 0.6 * file.teacher_latency_ms, "speedup": 1 / 0.6, "size_bytes": int(0.6 * macs(network))}
    factorizable, choice = choice_of(network, file, **{name: asked[name]})
    target = choice.notes["target"]
    filled = target["measured"][name] / asked[name]
    filled = 1 / filled if name == "speedup" else filled
    assert 0.85 <= filled <= 1
    small = factorized(factorizable, choice.left)
    assert target["measured"] == FakeFile(network, factor).measure(small)
    assert target["reached"][name] == target["measured"][name]
    assert target["reached"]["macs"] == macs(small)
    key = "size_bytes" if name == "size_bytes" else "latency_ms"
    share = macs(small) / macs(network)
    assert target["measured"][key] / target["predicted"][key] == pytest.approx(1 + (factor - 1) * (1 - share))
    assert len([row for row in target["search"] if row["position"] is None]) == len(file.measured) <= 3


def test_the_tightest_of_limits_on_the_file_and_on_macs_decides() -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network))
    for target, tightest in (
        ({"latency_ms": 0.6 * file.teacher_latency_ms, "macs_share": 0.9}, "latency_ms"),
        ({"latency_ms": 0.9 * file.teacher_latency_ms, "macs_share": 0.6}, "macs_share"),
    ):
        _, choice = choice_of(copy.deepcopy(network), file, **target)
        reached = choice.notes["target"]["reached"]
        filled = {name: reached[name] / asked for name, asked in target.items()}
        assert all(share <= 1 for share in filled.values())
        assert filled[tightest] > 0.85


def test_sensitivity_saves_where_it_costs_least_for_a_limit_on_the_file() -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network))
    _, choice = choice_of(network, file, "sensitivity", speedup=1.5)
    assert choice.notes["target"]["reached"]["speedup"] >= 1.5
    groups = choice.notes["sensitivity"]["groups"]
    shares = {row["left"] / row["ranks"] for row in groups}
    assert len(shares) > 1


def test_an_unreachable_file_is_named_in_measured_figures() -> None:
    network = trained(resnet)
    file = FakeFile(copy.deepcopy(network), 2.0)
    for target in ({"latency_ms": 0.05 * file.teacher_latency_ms}, {"speedup": 50.0}, {"size_bytes": 1000}):
        ((name, value),) = target.items()
        with pytest.raises(UserError) as caught:
            choice_of(copy.deepcopy(network), file, **target)
        assert f"factorize.target.{name}={value:.4g}, while" in str(caught.value)
        assert f"has {'size_bytes' if name == 'size_bytes' else 'latency_ms'}" in str(caught.value)
        assert "allow lower ranks (factorize.round_to)" in str(caught.value)


def test_the_predicted_size_is_that_of_the_written_file(tmp_path: Path) -> None:
    factorizable = FactorizableNetwork(trained(resnet), EXAMPLE, SPATIAL, 8)
    left = [group.allowed(group.channels / 2) for group in factorizable.groups]
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export_onnx(factorizable.network, whole, SHAPE)
    export_onnx(factorized(factorizable, left), small, SHAPE)
    before, after = whole.stat().st_size, small.stat().st_size
    cost = bytes_cost(factorizable.network, before, int8=False, other=factorizable.twin)
    assert after < 0.7 * before
    assert cost.of(factorizable.widths(left)) == pytest.approx(after, rel=0.03)
