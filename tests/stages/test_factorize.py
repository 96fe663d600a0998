"""The stage `factorize` alone and in chains: targets are met, files agree with torch, and networks are rebuilt."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import Config
from compress.config.stage_settings import FactorizeConfig, PruneTargetConfig
from compress.evaluation.flops import count_cost
from compress.methods.restore import restore
from compress.models.artifact import write_model
from compress.models.widths import read_widths
from compress.pipeline.run import run_pipeline
from compress.stages import check_order
from compress.stages.factorize import factorize
from compress.stages.prune import prune
from compress.training.context import Context
from compress.utils.errors import UserError
from compress.utils.files import METRICS, SPEC, STAGE, read_json
from tests.stages.taught import taught

QUICK = FactorizeConfig(round_to=2, reconstruction_samples=64, epochs=0)


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    yield from taught(replace(tiny_config, teacher=replace(tiny_config.teacher, epochs=1)), tmp_path)


def asking(**target: float) -> FactorizeConfig:
    return replace(QUICK, target=PruneTargetConfig(**target))


@pytest.mark.parametrize("scope", ["sensitivity", "local"])
@pytest.mark.parametrize("method", ["spatial_svd", "tucker2"])
def test_a_target_is_met_and_recorded(context: Context, method: str, scope: str) -> None:
    params, macs = count_cost(context.teacher.network, context.data.shape)
    config = replace(asking(macs_share=0.6, params_share=0.7), method=method, scope=scope)
    artifact = factorize(copy.deepcopy(context.teacher), config, context)
    left = count_cost(artifact.network, context.data.shape)
    target = artifact.notes["target"]
    assert (target["reached"]["params"], target["reached"]["macs"]) == left
    assert left[1] <= 0.6 * macs
    assert left[0] <= 0.7 * params
    assert 0.5 * macs < left[1] or 0.6 * params < left[0]
    rows = {row["layer"]: row for row in artifact.notes["ranks"]}
    (record,) = artifact.spec.changes
    assert {name: {"kind": row["kind"], "ranks": row["ranks"]} for name, row in rows.items()} == record["layers"]
    assert rows.keys() == artifact.notes["unexplained_share"].keys()
    layers = {name for name, width in read_widths(context.teacher.network).items() if len(width) > 1}
    assert {row["layer"] for row in artifact.left_out} == layers - rows.keys()
    assert ("sensitivity" in artifact.notes) == (scope == "sensitivity")


def test_a_ratio_counts_the_macs_of_layers_that_can_be_factorized(context: Context) -> None:
    macs = count_cost(context.teacher.network, context.data.shape)[1]
    artifact = factorize(copy.deepcopy(context.teacher), replace(QUICK, ratio=0.4), context)
    share = count_cost(artifact.network, context.data.shape)[1] / macs
    assert 0.55 < share < 0.7
    assert "target" not in artifact.notes


def test_the_smallest_network_that_keeps_the_metric(context: Context) -> None:
    artifact = factorize(copy.deepcopy(context.teacher), asking(max_drop_points=100), context)
    target = artifact.notes["target"]
    assert target["reached"]["drop_points"] <= 100
    assert [row["macs"] for row in target["search"]] == [target["reached"]["macs"]]  # the end of the path, at once
    lowest = {row["layers"][0]: row["curve"][-1][0] for row in artifact.notes["sensitivity"]["groups"]}
    assert {row["layer"]: row["ranks"][0] for row in artifact.notes["ranks"]} == lowest


def test_a_target_out_of_reach_names_what_can_be_reached(context: Context) -> None:
    with pytest.raises(UserError, match=r"factorize\.target\.macs_share=0\.01, while .* has macs_share 0\.\d+"):
        factorize(copy.deepcopy(context.teacher), asking(macs_share=0.01), context)


def test_a_network_is_rebuilt_exactly_before_and_after_pruning(
    context: Context, tiny_config: Config, tmp_path: Path
) -> None:
    pruning = replace(tiny_config.prune, epochs=0)
    images = next(context.data.val.batches())[0]
    first = prune(factorize(copy.deepcopy(context.teacher), QUICK, context), pruning, context)
    assert any(name.endswith((".0", ".1")) for name in first.spec.changes[1]["widths"])
    last = factorize(prune(copy.deepcopy(context.teacher), pruning, context), QUICK, context)
    for name, artifact in {"first": first, "last": last}.items():
        (tmp_path / name).mkdir()
        write_model(artifact, tmp_path / name)
        rebuilt = restore(tmp_path / name, torch.device("cpu")).network
        state, wanted = rebuilt.state_dict(), artifact.network.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
        with torch.no_grad():
            assert (rebuilt(images) - artifact.network(images)).abs().max() < 1e-5


def test_a_ratio_of_zero_changes_nothing(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    artifact = factorize(copy.deepcopy(context.teacher), replace(QUICK, ratio=0.0), context)
    assert "factorize changes nothing" in caplog.text
    given = context.teacher.network.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in artifact.network.state_dict().items())


def test_places_in_the_order_of_stages() -> None:
    check_order(["teacher", "factorize", "quantize"])
    check_order(["teacher", "prune", "factorize", "distill", "quantize"])
    with pytest.raises(UserError, match="quantize last"):
        check_order(["teacher", "quantize", "factorize"])


@pytest.mark.e2e
@pytest.mark.parametrize(
    "stages", [["teacher", "factorize", "prune", "quantize"], ["teacher", "prune", "factorize", "distill", "quantize"]]
)
def test_a_chain_ends_in_an_int8_file_that_agrees_with_torch(
    tiny_config: Config, tmp_path: Path, stages: list[str]
) -> None:
    config = replace(tiny_config, stages=stages, factorize=replace(QUICK, ratio=0.3))
    config.quantize.mode = "ptq"
    run_pipeline(config, tmp_path)
    number = stages.index("factorize") + 1
    folder = tmp_path / f"{number:02}_factorize"
    assert read_json(folder / METRICS)["deployed_agreement_percent"] == 100
    assert read_json(folder / STAGE)["notes"]["ranks"]
    assert {change["method"] for change in read_json(folder / SPEC)["changes"]} >= {"factorize"}
    last = tmp_path / f"{len(stages):02}_quantize"
    metrics = read_json(last / METRICS)
    assert metrics["deployed_agreement_percent"] > 90
    assert metrics["macs"] < 0.75 * read_json(tmp_path / "01_teacher" / METRICS)["macs"]
    assert "factorize" in (tmp_path / "report.html").read_text()
