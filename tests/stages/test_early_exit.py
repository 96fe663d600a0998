"""The stage `early_exit` alone and in chains: what it trains, what it records, and what may follow it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.conditional_settings import EarlyExitConfig
from compress.config.schema import Config
from compress.config.validation import check
from compress.evaluation.flops import count_cost
from compress.methods.early_exit.network import EarlyExitNetwork
from compress.methods.restore import restore
from compress.models.artifact import write_model
from compress.pipeline.run import run_pipeline
from compress.stages import check_order
from compress.stages.early_exit import early_exit
from compress.training.context import Context
from compress.utils.errors import UserError
from compress.utils.files import EXITS, METRICS, STAGE, read_json
from tests.stages.taught import taught

QUICK = EarlyExitConfig(epochs=1, max_drop_points=20.0)


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    yield from taught(replace(tiny_config, teacher=replace(tiny_config.teacher, epochs=1)), tmp_path)


def test_frozen_layers_stay_as_they_are_and_the_exits_learn(context: Context) -> None:
    config = replace(QUICK, train="exits", epochs=3, lr=0.1)
    artifact = early_exit(copy.deepcopy(context.teacher), config, context)
    given = context.teacher.network.state_dict()
    found = artifact.network.network.state_dict()
    assert given.keys() == found.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)  # batch norm's statistics among them
    losses = [row["train_loss"] for row in artifact.notes["history"]]
    assert losses[-1] < losses[0]


def test_all_layers_learn_where_that_is_asked(context: Context) -> None:
    artifact = early_exit(copy.deepcopy(context.teacher), QUICK, context)
    given = context.teacher.network.state_dict()
    assert not torch.equal(artifact.network.network.conv1.weight, given["conv1.weight"])
    assert not torch.equal(artifact.network.network.bn1.running_mean, given["bn1.running_mean"])


def test_the_record_says_what_each_end_costs_and_the_notes_what_validation_found(context: Context) -> None:
    artifact = early_exit(copy.deepcopy(context.teacher), QUICK, context)
    record, found = artifact.spec.exits, artifact.notes["exits"]
    assert [exit["after"] for exit in record["exits"]] == ["layer1", "layer2"]
    _, macs = count_cost(artifact.network, context.data.shape)
    assert record["macs"][-1] == macs
    assert record["macs"] == sorted(record["macs"]) == [row["macs"] for row in found["ends"]]
    assert sum(row["val_share_percent"] for row in found["ends"]) == pytest.approx(100)
    assert found["val_top1_percent"] >= found["ends"][-1]["val_top1_percent_of_all"] - 20
    shares = [row["val_share_percent"] / 100 for row in found["ends"]]
    assert found["val_mean_macs"] == pytest.approx(sum(a * b for a, b in zip(shares, record["macs"], strict=True)))
    for row, exit in zip(found["ends"], artifact.network.exits, strict=False):
        assert exit.threshold.item() == pytest.approx(row["threshold"])
        assert exit.temperature.item() == pytest.approx(row["temperature"])


def test_the_network_is_rebuilt_exactly(context: Context, tmp_path: Path) -> None:
    artifact = early_exit(copy.deepcopy(context.teacher), replace(QUICK, after=["layer2.0"]), context)
    (tmp_path / "stage").mkdir()
    write_model(artifact, tmp_path / "stage")
    rebuilt = restore(tmp_path / "stage", torch.device("cpu")).network
    assert isinstance(rebuilt, EarlyExitNetwork)
    state, wanted = rebuilt.state_dict(), artifact.network.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    images = next(context.data.val.batches())[0]
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images), artifact.network(images))


def test_only_quantize_may_follow() -> None:
    check_order(["teacher", "prune", "factorize", "distill", "early_exit", "quantize"])
    check_order(["teacher", "early_exit"])
    for later in ("prune", "factorize", "distill"):
        with pytest.raises(UserError, match="expected early_exit before quantize alone: its exits and thresholds"):
            check_order(["teacher", "early_exit", later, "quantize"])


@pytest.mark.parametrize("task", ["multilabel", "detection"])
def test_images_without_a_single_class_are_refused_before_the_run(tiny_config: Config, task: str) -> None:
    config = replace(tiny_config, stages=["teacher", "early_exit"])
    check(config)
    config.data.task = task
    with pytest.raises(UserError, match=f"data.task={task}; expected data.task=classification"):
        check(config)


@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_a_chain_ends_in_an_int8_file_with_figures_of_its_exits(tiny_config: Config, tmp_path: Path, mode: str) -> None:
    config = replace(tiny_config, stages=["teacher", "prune", "early_exit", "quantize"], early_exit=QUICK)
    config.quantize.mode = mode
    run_pipeline(config, tmp_path)
    for folder in (tmp_path / "03_early_exit", tmp_path / "04_quantize"):
        metrics = read_json(folder / METRICS)
        assert metrics["deployed_agreement_percent"] > 90
        ends, notes = metrics["exits"]["ends"], read_json(folder / STAGE)["notes"]["exits"]["ends"]
        assert [row["macs"] for row in ends] == [row["macs"] for row in notes]
        assert sum(row["images"] for row in ends) == metrics["images"]
        right = sum(row["images"] * (row["top1_percent"] or 0) / 100 for row in ends)
        assert right == pytest.approx(metrics["deployed_top1_percent"] * metrics["images"] / 100)
        assert ends[0]["macs"] <= metrics["mean_macs"] <= metrics["macs"] == ends[-1]["macs"]
        assert (folder / EXITS).is_file()
    assert read_json(tmp_path / "04_quantize" / METRICS)["int8_macs_percent"] == 100
    float_notes, int8_notes = (
        read_json(tmp_path / name / STAGE)["notes"]["exits"]["ends"][0]["temperature"]
        for name in ("03_early_exit", "04_quantize")
    )
    assert float_notes != int8_notes  # fitted anew, to the logits of int8
    assert "Who leaves early" in (tmp_path / "report.html").read_text()
    assert "leave before the end" in (tmp_path / "report.md").read_text()
