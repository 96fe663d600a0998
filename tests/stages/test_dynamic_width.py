"""The stage `dynamic_width` alone and before `quantize`: widths are recorded, rebuilt, exported and chosen by image."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.config.conditional_settings import DynamicWidthConfig
from compress.config.schema import Config
from compress.config.validation import check
from compress.data import load_data
from compress.evaluation.energy_estimate import estimate_energy_mj
from compress.evaluation.exits import ends_of
from compress.evaluation.flops import count_cost
from compress.export.onnx_ends import branch_depths, last_end_alone
from compress.export.onnx_inspect import inspect_quantization
from compress.export.onnx_session import open_session
from compress.methods.conditional.selection import set_choice
from compress.methods.restore import restore
from compress.models.artifact import write_model
from compress.models.widths import read_widths
from compress.pipeline.run import run_pipeline
from compress.report.html import run_page
from compress.report.markdown import run_markdown
from compress.report.run_files import load_run
from compress.stages import check_order
from compress.stages.dynamic_width import dynamic_width
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context
from compress.utils.errors import UserError
from compress.utils.exit_names import EXIT_INDEX, NEVER, THRESHOLDS
from compress.utils.files import METRICS, SPEC, STAGE, read_json
from tests.pipeline.small_training import Killed, dying
from tests.stages.taught import taught

QUICK = DynamicWidthConfig(widths=[0.25, 0.5, 1.0], round_to=2, epochs=0)


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    yield from taught(replace(tiny_config, teacher=replace(tiny_config.teacher, epochs=1)), tmp_path)


@pytest.mark.parametrize("train", ["narrower", "all"])
def test_widths_are_recorded_and_rebuilt_exactly(context: Context, tmp_path: Path, train: str) -> None:
    artifact = dynamic_width(copy.deepcopy(context.teacher), replace(QUICK, epochs=1, train=train), context)
    network, (record,) = artifact.network, artifact.spec.changes
    assert artifact.spec.exits == record
    assert record["ends"] == [{"width": 0.25}, {"width": 0.5}, {"width": 1.0}]
    assert record["channels"] == [read_widths(narrow) for narrow in network.narrower]
    own = [count_cost(each, context.data.shape)[1] for each in (*network.narrower, network.network)]
    assert record["macs"] == [own[0], own[0] + own[1], sum(own)]
    assert own == sorted(own)
    assert len(artifact.notes["exits"]["ends"]) == 3
    assert len(artifact.notes["history"]) == 1
    write_model(artifact, tmp_path)
    rebuilt = restore(tmp_path, torch.device("cpu")).network
    state, wanted = rebuilt.state_dict(), network.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("train", ["narrower", "all"])
def test_a_training_that_is_killed_ends_the_same(context: Context, tmp_path: Path, train: str) -> None:
    config = replace(QUICK, epochs=2, train=train)

    def run(checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        found = dynamic_width(copy.deepcopy(context.teacher), config, replace(context, checkpoint=checkpoint, notes={}))
        return found.network.state_dict()

    wanted = run(None)
    with pytest.raises(Killed):
        run(dying(tmp_path / "state", 5))
    found = run(Checkpoint(tmp_path / "state", "key", 10))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_widest_learns_only_where_that_is_asked(context: Context) -> None:
    found = {
        train: dynamic_width(copy.deepcopy(context.teacher), replace(QUICK, epochs=1, train=train), context)
        for train in ("narrower", "all")
    }
    given = context.teacher.network.state_dict()
    same = {
        train: [torch.equal(value, given[key]) for key, value in artifact.network.network.state_dict().items()]
        for train, artifact in found.items()
    }
    assert all(same["narrower"])  # batch norm's statistics among them
    assert not any(same["all"])
    assert len(found["narrower"].notes["history"]) == 1


def test_narrower_networks_are_refitted_before_they_are_trained_alone(context: Context) -> None:
    images = torch.cat([images for images, _ in context.data.train.batches()])
    found = dynamic_width(copy.deepcopy(context.teacher), QUICK, context).network
    bare = dynamic_width(copy.deepcopy(context.teacher), replace(QUICK, train="all"), context).network

    def distance(network: nn.Module) -> float:
        _, own, wanted = (F.log_softmax(logits, 1) for logits in network.ends(images))
        return F.kl_div(own, wanted, log_target=True, reduction="batchmean").item()

    with torch.no_grad():
        assert distance(found) < 0.5 * distance(bare)


def test_without_training_the_widest_is_the_network_that_came(context: Context) -> None:
    artifact = dynamic_width(copy.deepcopy(context.teacher), replace(QUICK, train="all"), context)
    given = context.teacher.network.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in artifact.network.network.state_dict().items())
    images = next(context.data.val.batches())[0]
    set_choice(artifact.network, [1.0, 1.0], [NEVER, NEVER])
    with torch.no_grad():
        torch.testing.assert_close(artifact.network.eval()(images), context.teacher.network.eval()(images))


def test_validation_loses_no_more_than_allowed(context: Context) -> None:
    artifact = dynamic_width(copy.deepcopy(context.teacher), replace(QUICK, max_drop_points=5.0), context)
    widest = artifact.notes["exits"]["ends"][-1]["val_top1_percent_of_all"]
    assert artifact.notes["exits"]["val_top1_percent"] >= widest - 5.0


def test_a_network_without_channels_to_spare_is_refused(context: Context) -> None:
    with pytest.raises(
        UserError, match=r"dynamic_width\.widths=\[0\.9,1\.0\], while no layer has fewer channels at 0\.9"
    ):
        dynamic_width(copy.deepcopy(context.teacher), replace(QUICK, widths=[0.9, 1.0], round_to=64), context)


@pytest.mark.parametrize("widths", [[], [1.0], [0.5], [0.5, 0.9], [1.0, 0.5], [0.5, 0.5, 1.0]])
def test_widths_among_which_no_image_could_choose_are_refused(widths: list[float]) -> None:
    with pytest.raises(UserError, match=r"dynamic_width\.widths="):
        check(DynamicWidthConfig(widths=widths))
    check(DynamicWidthConfig(widths=[0.25, 0.5, 1.0]))


def test_places_in_the_order_of_stages() -> None:
    check_order(["teacher", "prune", "distill", "dynamic_width", "quantize"])
    for stages in (["teacher", "dynamic_width", "prune"], ["teacher", "early_exit", "dynamic_width"]):
        with pytest.raises(UserError, match="before quantize alone"):
            check_order(stages)


@pytest.mark.e2e
def test_the_int8_file_skips_the_widths_that_an_image_does_not_need(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(tiny_config, stages=["teacher", "dynamic_width", "quantize"])
    config.dynamic_width = replace(QUICK, epochs=1, max_drop_points=10.0)
    run_pipeline(config, tmp_path)
    images = np.concatenate([batch.numpy() for batch, _ in load_data(config.data, 0).test.batches()])
    for name in ("02_dynamic_width", "03_quantize"):
        path = tmp_path / name / "model.onnx"
        session = open_session(path)
        with torch.no_grad():
            ends = [logits.numpy() for logits in _ends(tmp_path / name, images)]
        spread = np.concatenate(ends).std()
        for end, thresholds in enumerate(([0, 0], [NEVER, 0], [NEVER, NEVER])):
            feeds = {"image": images, THRESHOLDS: np.array(thresholds, np.float32)}
            logits, index = session.run(["logits", EXIT_INDEX], feeds)
            assert set(index) == {end}
            assert np.abs(logits - ends[end]).mean() < (0.3 if name == "03_quantize" else 1e-4) * spread
        alone = open_session(last_end_alone(path).SerializeToString()).run(None, {"image": images})[0]
        assert np.abs(alone - logits).max() < 1e-4 * spread
        _assert_narrow_layers_come_first(path)
        metrics = read_json(tmp_path / name / METRICS)
        assert [row["width"] for row in metrics["exits"]["ends"]] == [0.25, 0.5, 1.0]
        assert sum(row["images"] for row in metrics["exits"]["ends"]) == metrics["images"] == len(images)
        assert metrics["exits"]["latency_share"] == pytest.approx(0.25 / 0.4)
        energies = [estimate_energy_mj(path, [2048, 8192], shares) for shares in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
        assert energies == sorted(energies)
        assert len(set(energies)) == 3
    assert metrics["estimated_energy_mj_per_image"] < read_json(tmp_path / "01_teacher" / METRICS)["macs"] * 4.6e-9
    assert {row["layer"] for row in read_json(tmp_path / "03_quantize" / STAGE)["left_out"]} == set()
    assert [change["method"] for change in read_json(tmp_path / "03_quantize" / SPEC)["changes"]] == [
        "dynamic_width",
        "quantize",
    ]
    run = load_run(tmp_path)
    for written in (run_page(run), run_markdown(run)):
        assert all(f"at width {width}" in written for width in ("0.25", "0.5", "1"))


def _ends(folder: Path, images: np.ndarray) -> list[torch.Tensor]:
    """The logits of all widths in torch."""
    return list(ends_of(restore(folder, torch.device("cpu")).network)(torch.from_numpy(images)))


def _assert_narrow_layers_come_first(path: Path) -> None:
    """Layers of the narrowest width are in no branch, those of the next in one, and those of the widest in two."""
    depths, kinds = branch_depths(path), {"narrower.0.": 0, "narrower.1.": 1, "network.": 2}
    layers = [layer.node for layer in inspect_quantization(path)]
    assert {depths[node] for node in layers} == {0, 1, 2}
    for node in layers:
        (wanted,) = (depth for start, depth in kinds.items() if node.startswith(start))
        assert depths[node] == wanted, node
