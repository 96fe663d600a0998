"""The table of layer times: which points it measures and keeps, and what it makes of them. No time is compared."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

from compress.evaluation import latency_table as module
from compress.evaluation.latency_table import LatencyTable, LayerShape, network_ms, remainder_ms
from compress.evaluation.layer_timing import measure_layers
from compress.evaluation.layer_timing_model import LayerPoint, timing_file
from compress.export.onnx_inspect import executed_operators
from compress.models.layer_calls import LayerCall, layer_calls
from compress.models.widths import read_widths

CALL = LayerCall((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (8, 8), 64, False)
LINEAR = LayerCall((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), 1, True)


def plane_ms(point: LayerPoint) -> float:
    """A time that is a plane over the channels, and depends on the kind of layer."""
    return 2.0 * point.out_channels + 3.0 * point.in_channels + 1000 * point.linear


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[LayerPoint]:
    """The points that were measured, by a function that starts no process."""
    points: list[LayerPoint] = []

    def measure(wanted: list[LayerPoint], precision: str, threads: int) -> list[float]:
        points.extend(wanted)
        return [plane_ms(point) for point in wanted]

    monkeypatch.setattr(module, "measure_layers", measure)
    set_load(monkeypatch, 0.0)
    return points


def set_load(monkeypatch: pytest.MonkeyPatch, busy_cores: float) -> None:
    """Makes other programs seem to use so many of two cores."""
    monkeypatch.setattr(module, "OtherLoad", lambda: SimpleNamespace(cores=lambda: busy_cores))
    monkeypatch.setattr(module, "cores", lambda: 2)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def test_a_point_is_measured_once_and_read_again(tmp_path: Path, measured: list[LayerPoint]) -> None:
    first = LatencyTable(tmp_path, "int8", 1)
    times = [first.layer_ms(LayerShape(CALL, 16, 32, 1)), first.layer_ms(LayerShape(CALL, 16, 32, 1))]
    times.append(LatencyTable(tmp_path, "int8", 1).layer_ms(LayerShape(CALL, 16, 32, 1)))
    assert times == [2 * 16 + 3 * 32] * 3
    assert [(point.out_channels, point.in_channels) for point in measured] == [(16, 32)]


def test_without_a_folder_nothing_is_kept(tmp_path: Path, measured: list[LayerPoint]) -> None:
    for _ in range(2):
        LatencyTable(None, "int8", 1).layer_ms(LayerShape(CALL, 16, 16, 1))
    assert len(measured) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("out_channels", "in_channels"), [(8, 16), (24, 40), (128, 72), (144, 200), (1000, 1280)])
def test_a_plane_is_interpolated_exactly_on_the_grid_and_between(out_channels: int, in_channels: int) -> None:
    found = LatencyTable(None, "float32", 1).layer_ms(LayerShape(CALL, out_channels, in_channels, 1))
    assert found == pytest.approx(2 * out_channels + 3 * in_channels)


def test_only_the_corners_are_measured(measured: list[LayerPoint]) -> None:
    """144 lies between 128 and 160; 300 between 268 and 332, which leave the same remainder of a block of 16."""
    LatencyTable(None, "int8", 1).layer_ms(LayerShape(CALL, 144, 300, 1))
    channels = {(point.out_channels, point.in_channels) for point in measured}
    assert channels == {(128, 268), (128, 332), (160, 268), (160, 332)}


def test_numbers_between_multiples_of_four_share_a_point(measured: list[LayerPoint]) -> None:
    table = LatencyTable(None, "int8", 1)
    assert len({table.layer_ms(LayerShape(CALL, channels, 16, 1)) for channels in (33, 34, 35)}) == 1
    assert [point.out_channels for point in measured] == [34]


def test_depthwise_layers_are_interpolated_in_one_dimension(measured: list[LayerPoint]) -> None:
    assert LatencyTable(None, "int8", 1).layer_ms(LayerShape(CALL, 144, 144, 144)) == pytest.approx(5 * 144)
    assert [(p.out_channels, p.in_channels, p.groups) for p in measured] == [(128, 128, 128), (160, 160, 160)]


def test_layers_in_groups_are_measured_as_they_are(measured: list[LayerPoint]) -> None:
    LatencyTable(None, "int8", 1).layer_ms(LayerShape(CALL, 150, 300, 3))
    assert [(p.out_channels, p.in_channels, p.groups) for p in measured] == [(150, 300, 3)]


@pytest.mark.parametrize(("precision", "channels"), [("int8", 4), ("float32", 3)])
def test_an_int8_file_reads_an_image_as_four_channels(
    precision: str, channels: int, measured: list[LayerPoint]
) -> None:
    LatencyTable(None, precision, 1).layer_ms(LayerShape(CALL, 16, 3, 1))
    assert [point.in_channels for point in measured] == [channels]


def test_missing_points_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    monkeypatch.setattr(module, "measure_layers", lambda points, *_: batches.append(len(points)) or [1.0] * len(points))
    table = LatencyTable(None, "int8", 1)
    table.layer_ms(LayerShape(CALL, 16, 16, 1))
    table.require(LayerShape(CALL, out_channels, 16, 1) for out_channels in (16, 32, 48, 48))
    assert batches == [1, 2]


def test_a_table_of_another_machine_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[LayerPoint]
) -> None:
    LatencyTable(tmp_path, "int8", 1).layer_ms(LayerShape(CALL, 16, 16, 1))
    others = [LatencyTable(tmp_path, "float32", 1), LatencyTable(tmp_path, "int8", 2)]
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "0.0.1")
        others.append(LatencyTable(tmp_path, "int8", 1))
    with monkeypatch.context() as patch:
        patch.setattr(module, "cpu_name", lambda: "another CPU")
        others.append(LatencyTable(tmp_path, "int8", 1))
    for table in others:
        table.layer_ms(LayerShape(CALL, 16, 16, 1))
    assert len(measured) == 5
    facts = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(facts) == 5
    assert {fact["cpu"] for fact in facts} > {"another CPU"}


@pytest.mark.parametrize("damage", ["cut", "list", "text for a time", "other threads"])
def test_a_damaged_file_is_set_aside_with_a_warning(
    damage: str, tmp_path: Path, measured: list[LayerPoint], caplog: pytest.LogCaptureFixture
) -> None:
    LatencyTable(tmp_path, "int8", 1).layer_ms(LayerShape(CALL, 16, 16, 1))
    path = only_file(tmp_path)
    record = json.loads(path.read_text())
    damaged = {
        "cut": path.read_text()[:-20],
        "list": "[]",
        "text for a time": json.dumps(record | {"milliseconds": dict.fromkeys(record["milliseconds"], "1 ms")}),
        "other threads": json.dumps(record | {"threads": 8}),
    }[damage]
    path.write_text(damaged)
    with caplog.at_level(logging.WARNING, "compress"):
        assert LatencyTable(tmp_path, "int8", 1).layer_ms(LayerShape(CALL, 16, 16, 1)) == 5 * 16
    assert len(measured) == 2
    assert "set aside" in caplog.text
    assert path.with_name(f"{path.name}.damaged").read_text() == damaged
    assert json.loads(path.read_text()) == record


def test_two_tables_merge(tmp_path: Path, measured: list[LayerPoint]) -> None:
    first, second = (LatencyTable(tmp_path, "int8", 1) for _ in range(2))
    first.layer_ms(LayerShape(CALL, 16, 16, 1))
    second.layer_ms(LayerShape(CALL, 32, 16, 1))
    third = LatencyTable(tmp_path, "int8", 1)
    assert [third.layer_ms(LayerShape(CALL, channels, 16, 1)) for channels in (16, 32)] == [80, 112]
    assert len(measured) == 2


def test_times_of_a_busy_machine_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[LayerPoint], caplog: pytest.LogCaptureFixture
) -> None:
    set_load(monkeypatch, 1.0)
    table = LatencyTable(tmp_path, "int8", 2)
    with caplog.at_level(logging.WARNING, "compress"):
        assert [table.layer_ms(LayerShape(CALL, 16, 16, 1)) for _ in range(2)] == [80, 80]
        assert len(measured) == 1
        table.layer_ms(LayerShape(CALL, 64, 16, 1))
    assert caplog.text.count("other programs used 1.0 of 2 cores") == 1
    set_load(monkeypatch, 0.0)
    assert table.layer_ms(LayerShape(CALL, 32, 16, 1)) == 112
    assert len(json.loads(only_file(tmp_path).read_text())["milliseconds"]) == 1


def test_a_busy_core_that_is_not_needed_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_load(monkeypatch, 1.0)
    LatencyTable(tmp_path, "int8", 1).layer_ms(LayerShape(CALL, 16, 16, 1))
    assert len(json.loads(only_file(tmp_path).read_text())["milliseconds"]) == 1


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    table = LatencyTable(tmp_path, "int8", 1)
    table._path = tmp_path / "file" / "table.json"
    with caplog.at_level(logging.WARNING, "compress"):
        assert table.layer_ms(LayerShape(CALL, 16, 16, 1)) == 80
    assert "are not kept" in caplog.text


def test_the_times_of_all_calls_add_up() -> None:
    """A convolution that is called twice, a linear layer that is called once, and one that is not called."""
    calls, widths = {"conv": [CALL, CALL], "linear": [LINEAR], "idle": []}, {"conv": [16, 16, 1], "linear": [8, 16]}
    table = LatencyTable(None, "int8", 1)
    layers = 2 * 80 + (1000 + 2 * 8 + 3 * 16)
    assert network_ms(table, calls, widths | {"idle": [4, 4]}) == layers
    assert remainder_ms(table, calls, widths | {"idle": [4, 4]}, layers + 7.0) == 7


def test_calls_of_a_network_have_times() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5)).eval()
    calls = layer_calls(network, torch.zeros(1, 3, 6, 6))
    assert network_ms(LatencyTable(None, "float32", 1), calls, read_widths(network)) == 25 + (1000 + 10 + 3 * 128)


@pytest.mark.parametrize(
    ("precision", "operators"), [("int8", ("QLinearConv", "QGemm")), ("float32", ("Conv", "Gemm"))]
)
def test_layers_run_in_the_form_in_which_they_ship(precision: str, operators: tuple[str, str], tmp_path: Path) -> None:
    for call, operator, stems in ((CALL, operators[0], 1), (LINEAR, operators[1], 0)):
        point = LayerPoint(call.kernel, call.stride, call.padding, call.dilation, call.size, call.linear, 16, 16, 1)
        for with_layer in (True, False):
            (tmp_path / "timing.onnx").write_bytes(timing_file(point, precision, with_layer))
            executed = executed_operators(tmp_path / "timing.onnx")
            assert executed[operator] == stems + with_layer * point.copies(precision)
            assert executed["Relu"] == 0


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_real_layers_take_a_positive_time(precision: str) -> None:
    points = [
        LayerPoint((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (16, 16), False, 16, 8, 1),
        LayerPoint((3, 3), (2, 2), (0, 0, 1, 1), (1, 1), (16, 16), False, 16, 16, 16),
        LayerPoint((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), True, 256, 256, 1),
    ]
    times = measure_layers(points, precision, threads=1)
    assert len(times) == len(points)
    assert all(0 < ms < math.inf for ms in times)


def test_a_layer_that_cannot_run_is_an_error_with_its_cause() -> None:
    point = LayerPoint((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), (8, 8), False, 16, 15, 2)
    with pytest.raises(RuntimeError, match="the process that measures layers ended with 1"):
        measure_layers([point], "float32", threads=1)
