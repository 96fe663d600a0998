"""The stage `search_architecture` alone and in chains: targets, the front, other picks, restarts, and its files."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.config.schema import Config
from compress.config.search_settings import SearchArchitectureConfig
from compress.config.stage_settings import PruneTargetConfig
from compress.evaluation.flops import count_cost
from compress.methods.architecture_search.score import Scorer
from compress.methods.restore import restore
from compress.models.artifact import Artifact, write_model
from compress.pipeline.run import run_pipeline
from compress.stages import check_order
from compress.stages.search_architecture import search_architecture
from compress.training.context import Context
from compress.utils.errors import UserError
from compress.utils.files import METRICS, SPEC, STAGE, read_json
from tests.stages.taught import taught

QUICK = SearchArchitectureConfig(round_to=2, trials=30, reconstruction_samples=48, fine_tune_epochs=0)


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    teacher = replace(tiny_config.teacher, model="blocks", epochs=10)
    yield from taught(replace(tiny_config, teacher=teacher), tmp_path)


def asking(config: SearchArchitectureConfig = QUICK, **target: float) -> SearchArchitectureConfig:
    return replace(config, target=PruneTargetConfig(**target))


def searched(context: Context, config: SearchArchitectureConfig) -> Artifact:
    return search_architecture(copy.deepcopy(context.teacher), config, context)


def assert_equal_networks(one: Artifact, other: Artifact) -> None:
    wanted, found = one.network.state_dict(), other.network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The candidates that were scored quickly, in order."""
    keys: list[str] = []
    quick = Scorer.quick

    def counted(self: Scorer, candidate: Any) -> float:
        keys.append(candidate.key)
        return quick(self, candidate)

    monkeypatch.setattr(Scorer, "quick", counted)
    return keys


def test_targets_are_met_by_the_nearest_network_of_the_front(context: Context, tmp_path: Path) -> None:
    params, macs = count_cost(context.teacher.network, context.data.shape)
    artifact = searched(context, asking(macs_share=0.5, params_share=0.6))
    left = count_cost(artifact.network, context.data.shape)
    target, found = artifact.notes["target"], artifact.notes["architectures"]
    assert (target["reached"]["params"], target["reached"]["macs"]) == left
    assert left[1] <= 0.5 * macs
    assert left[0] <= 0.6 * params
    assert left[1] > 0.35 * macs or left[0] > 0.45 * params
    front = found["front"]
    taken = front[found["taken"] - 1]
    assert [row["number"] for row in front] == list(range(1, len(front) + 1))
    assert sorted(front, key=lambda row: row["share"]) == front
    assert sorted(front, key=lambda row: -row["distance"]) == front
    assert taken["distance"] == min(row["distance"] for row in front if row["share"] <= 1)
    assert len(found["tried"]) == QUICK.trials
    (record,) = artifact.spec.changes
    assert record["left_out_blocks"] == taken["candidate"]["without"]
    assert record["kernels"] == taken["candidate"]["kernels"]
    write_model(artifact, tmp_path)
    assert_equal_networks(artifact, restore(tmp_path, torch.device("cpu")))


def test_a_search_uses_depth_kernels_and_widths_and_is_no_worse_than_its_seeds(context: Context) -> None:
    found = searched(context, asking(macs_share=0.4)).notes["architectures"]
    rows = [row["candidate"] for row in found["front"]]
    assert any(row["without"] for row in rows)
    assert any(row["kernels"] for row in rows)
    assert len({tuple(row["left"]) for row in rows}) > 1
    seeds = SearchArchitectureConfig(**vars(QUICK) | {"trials": 5})  # the uniform networks, one of each level
    of_seeds = searched(context, asking(seeds, macs_share=0.4)).notes["architectures"]
    best = [min(distance for share, distance in tried if share <= 1) for tried in (found["tried"], of_seeds["tried"])]
    assert best[0] < best[1]


def test_another_pick_needs_no_new_search(context: Context, tmp_path: Path, scored: list[str]) -> None:
    context.search_dir = tmp_path / "search"
    first = searched(context, asking(macs_share=0.5))
    before = len(scored)
    assert before == len(set(scored)) > 20
    front = first.notes["architectures"]["front"]
    picked = searched(context, replace(asking(macs_share=0.5), pick=len(front)))
    assert len(scored) == before
    assert picked.notes["architectures"]["taken"] == len(front)
    assert picked.notes["architectures"]["front"] == front
    assert count_cost(picked.network, context.data.shape)[1] == front[-1]["macs"]
    with pytest.raises(UserError, match=rf"pick=99 with a front of {len(front)} networks"):
        searched(context, replace(asking(macs_share=0.5), pick=99))


def test_a_search_that_was_stopped_ends_as_it_would_have(
    context: Context, tmp_path: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(context, asking(macs_share=0.5))
    context.search_dir = tmp_path / "search"
    wanted = list(scored)
    scored.clear()
    quick = Scorer.quick

    def failing(self: Scorer, candidate: Any) -> float:
        if len(scored) == 20:
            raise KeyboardInterrupt
        return quick(self, candidate)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "quick", failing)
        with pytest.raises(KeyboardInterrupt):
            searched(context, asking(macs_share=0.5))
    with (tmp_path / "search" / "trials.jsonl").open("a") as file:
        file.write('{"candidate": "half a li')  # as a killed process leaves it
    resumed = searched(context, asking(macs_share=0.5))
    assert scored == wanted  # each once, in the same order
    assert_equal_networks(whole, resumed)
    assert resumed.notes["architectures"] == whole.notes["architectures"]


def test_the_smallest_network_that_keeps_the_metric(context: Context) -> None:
    artifact = searched(context, asking(max_drop_points=100))
    reached = artifact.notes["target"]["reached"]
    assert reached["drop_points"] <= 100
    assert reached["macs_share"] < 0.3
    kept = searched(context, asking(max_drop_points=0)).notes["target"]["reached"]
    assert kept["drop_points"] <= 0
    assert reached["macs_share"] < kept["macs_share"] < 1


def test_targets_out_of_reach_name_what_can_be_reached(context: Context, scored: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"search_architecture\.target\.macs_share=0\.01, while .* has macs_share 0\.\d"
    ):
        searched(context, replace(asking(macs_share=0.01), round_to=8))
    assert not scored


def test_a_network_within_the_limits_that_loses_too_much_is_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    percents = iter([90.0, *[80.0] * 100])  # of the whole network, and of each that is scored in full
    monkeypatch.setattr(type(context.task), "score", lambda *_: next(percents))
    with pytest.raises(UserError, match=r"max_drop_points=5 with limits on costs, within which .* loses 10\.00 points"):
        searched(context, asking(macs_share=0.5, max_drop_points=5))


def test_shared_weights_are_trained_once_and_fit_sub_networks_without_a_refit(context: Context, tmp_path: Path) -> None:
    context.search_dir = tmp_path / "search"
    config = replace(asking(macs_share=0.4), epochs=2, lr=0.02)
    artifact = searched(context, config)
    assert len(artifact.notes["history"]) == 2
    assert artifact.notes["target"]["reached"]["macs_share"] <= 0.4
    trained = len(context.finished)
    picked = searched(context, replace(config, pick=1))
    assert len(context.finished) == trained == 1
    assert picked.notes["history"] == artifact.notes["history"]
    assert picked.notes["architectures"]["front"] == artifact.notes["architectures"]["front"]


def test_places_in_the_order_of_stages_and_settings_that_a_run_needs(tiny_config: Config) -> None:
    from compress.config.validation import check

    check_order(["teacher", "search_architecture", "factorize", "prune", "distill", "quantize"])
    with pytest.raises(UserError, match="quantize last"):
        check_order(["teacher", "quantize", "search_architecture"])
    config = replace(tiny_config, stages=["teacher", "search_architecture"])
    with pytest.raises(UserError, match=r"nothing under search_architecture\.target"):
        check(config)
    config.search_architecture.target.macs_share = 0.5
    check(config)


@pytest.mark.e2e
def test_a_chain_ends_in_an_int8_file_that_agrees_with_torch(tiny_config: Config, tmp_path: Path) -> None:
    stages = ["teacher", "search_architecture", "distill", "quantize"]
    config = replace(tiny_config, stages=stages, search_architecture=asking(replace(QUICK, trials=24), macs_share=0.5))
    config.teacher.model, config.quantize.mode = "blocks", "ptq"
    run_pipeline(config, tmp_path)
    folder = tmp_path / "02_search_architecture"
    assert read_json(folder / METRICS)["deployed_agreement_percent"] == 100
    assert read_json(folder / STAGE)["notes"]["architectures"]["front"]
    assert [change["method"] for change in read_json(folder / SPEC)["changes"]] == ["search_architecture"]
    metrics = read_json(tmp_path / "04_quantize" / METRICS)
    assert metrics["deployed_agreement_percent"] > 90
    assert metrics["macs"] <= 0.5 * read_json(tmp_path / "01_teacher" / METRICS)["macs"]
    assert "Architecture search" in (tmp_path / "report.html").read_text()
