"""What TensorBoard shows of a run: curves by epoch, figures over the stages, a row of settings."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from compress.utils.files import read_json

pytestmark = pytest.mark.e2e

FOLDERS = ["01_teacher", "02_prune", "03_distill", "04_quantize"]


def tensorboard(folder: Path, name: str) -> EventAccumulator:
    """One run of a folder's TensorBoard."""
    return EventAccumulator(str(folder / "tensorboard" / name)).Reload()


def test_tensorboard_has_the_curves_of_each_stage_and_the_filters_left(finished: Path) -> None:
    for name, trained in zip(FOLDERS, (3, 1, 1, 1), strict=True):
        events = tensorboard(finished, name)
        tags = events.Tags()
        assert {"step/loss", "step/learning_rate", "epoch/val_loss", "epoch/val_top1_percent"} <= set(tags["scalars"])
        assert len(events.Scalars("epoch/val_loss")) == trained
        others = {tag for tag in tags["scalars"] if not tag.startswith(("epoch/", "step/"))}
        assert others == ({"summary_by_layer/filters_left_percent"} if name == "02_prune" else set())  # no lone dots
        assert tags["images"] == []  # the pictures are the page's
    left = [event.value for event in tensorboard(finished, "02_prune").Scalars("summary_by_layer/filters_left_percent")]
    assert all(0 < value <= 100 for value in left)
    assert min(left) < 100


def test_tensorboard_has_each_figure_as_a_line_over_the_stages(finished: Path) -> None:
    events = tensorboard(finished, "stages")
    metrics = [read_json(finished / name / "metrics.json") for name in FOLDERS]
    for tag in ("summary/deployed_top1_percent", "summary/size_bytes", "summary/latency_ms_p50", "summary_more/macs"):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [1, 2, 3, 4]
        wanted = [row[tag.partition("/")[2]] for row in metrics]
        assert [point.value for point in points] == pytest.approx(wanted)


def test_tensorboards_groups_begin_with_the_curves(finished: Path) -> None:
    """TensorBoard orders its groups of cards by name."""
    tags = {tag for name in (*FOLDERS, "stages") for tag in tensorboard(finished, name).Tags()["scalars"]}
    groups = sorted({tag.partition("/")[0] for tag in tags})
    assert groups == ["epoch", "step", "summary", "summary_by_layer", "summary_more"]


def test_a_run_is_a_row_of_tensorboards_table(finished: Path) -> None:
    events = tensorboard(finished, "stages")
    assert hparams(events)["prune.ratio"].number_value == 0.5
    assert {name.split(".")[0] for name in hparams(events)} >= {"teacher", "prune", "distill", "quantize"}
    assert metadata.EXPERIMENT_TAG not in events.summary_metadata  # TensorBoard makes it, of all runs


def hparams(events: EventAccumulator) -> dict:
    """The settings in a run's row of TensorBoard's table."""
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    return dict(metadata.parse_session_start_info_plugin_data(content).hparams)
