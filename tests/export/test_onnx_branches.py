"""Files that branch: the logits are those of the flat file, and what an image does not need is not executed."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compress.evaluation.profiler import node_times
from compress.export.onnx import export_onnx
from compress.export.onnx_branches import all_nodes, branch_on_selections, find_selections, flatten, load_flat
from compress.export.onnx_inspect import executed_operators, float_operators, inspect_quantization, require_quantized
from compress.export.onnx_session import open_session
from compress.export.onnx_shapes import layer_shapes
from compress.methods.conditional.selection import set_choice
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.utils.exit_names import EXIT_INDEX, NEVER, THRESHOLDS
from tests.early_exits import IMAGES, SHAPE, exiting, mixed


@pytest.fixture(scope="module", params=["float", "int8"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A flat file, and the same network's file with branches."""
    network = mixed()
    if request.param == "int8":
        prepared = prepare(network, IMAGES[:1], 7, qat=False)
        calibrate(prepared, [IMAGES])
        network = convert(prepared)
    folder = tmp_path_factory.mktemp(request.param)
    for name, branches in (("flat", False), ("branches", True)):
        export_onnx(network, folder / f"{name}.onnx", SHAPE, branches=branches)
    return folder / "flat.onnx", folder / "branches.onnx"


def run(path: Path, images: np.ndarray, **inputs: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, K) and where each image leaves, (N,)."""
    feeds = {name: np.array(value, np.float32) for name, value in inputs.items()}
    return tuple(open_session(path, 1).run(["logits", EXIT_INDEX], {"image": images} | feeds))


def test_a_batch_and_single_images_get_the_logits_of_the_flat_file(files: tuple[Path, Path]) -> None:
    flat, branches = files
    images = IMAGES.numpy()
    wanted = open_session(flat, 1).run(["logits"], {"image": images})[0]
    logits, index = run(branches, images)
    assert set(index) == {0, 1, 2}
    assert np.array_equal(logits, wanted)
    session = open_session(branches, 1)
    for at, image in enumerate(images):
        own, (place,) = session.run(["logits", EXIT_INDEX], {"image": image[None]})
        np.testing.assert_allclose(own, wanted[at : at + 1], atol=1e-5)
        assert place == index[at]
    ends = [at for end in (0, 1) for at in np.flatnonzero(index == end)[:2]]  # none of these goes to the end
    np.testing.assert_allclose(run(branches, images[ends])[0], wanted[ends], atol=1e-5)


@pytest.mark.parametrize(("thresholds", "end"), [([0, 0], 0), ([NEVER, 0], 1), ([NEVER, NEVER], 2)])
def test_the_input_thresholds_sends_all_images_to_one_end(
    files: tuple[Path, Path], thresholds: list[float], end: int
) -> None:
    flat, branches = files
    logits, index = run(branches, IMAGES.numpy(), thresholds=thresholds)
    assert set(index) == {end}
    model = onnx.load(str(flat))
    last = find_selections(model.graph)[min(end, 1)].where
    model.graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info(last.input[2 if end == 2 else 1]))
    wanted = open_session(model.SerializeToString(), 1).run(None, {"image": IMAGES.numpy()})[0]
    assert np.array_equal(logits, wanted)


def test_an_image_that_leaves_runs_nothing_of_what_comes_later(files: tuple[Path, Path], tmp_path: Path) -> None:
    executed, model = {}, onnx.load(str(files[1]))
    (default,) = (tensor for tensor in model.graph.initializer if tensor.name == THRESHOLDS)
    for name, thresholds in {"first": [0.0, 0.0], "second": [NEVER, 0.0], "end": [NEVER, NEVER]}.items():
        default.CopyFrom(onnx.numpy_helper.from_array(np.array(thresholds, np.float32), THRESHOLDS))
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        rows = node_times(str(tmp_path / "model.onnx"), [IMAGES[:1].numpy()], onnxruntime.SessionOptions(), 2)
        executed[name] = {row["name"].split(".")[1] for row in rows if row["name"].startswith("network.layer")}
        assert sum(row["share_percent"] for row in rows) == pytest.approx(100)
    assert executed == {"first": {"layer1"}, "second": {"layer1", "layer2"}, "end": {"layer1", "layer2", "layer3"}}


def test_flattening_undoes_branching(files: tuple[Path, Path]) -> None:
    flat, branches = files
    model = load_flat(branches)
    onnx.checker.check_model(model)
    assert not any(node.op_type == "If" for node in model.graph.node)
    logits = open_session(model.SerializeToString(), 1).run(["logits"], {"image": IMAGES.numpy()})[0]
    assert np.array_equal(logits, open_session(flat, 1).run(["logits"], {"image": IMAGES.numpy()})[0])
    before = onnx.load(str(flat))
    flatten(before)
    assert before == onnx.load(str(flat))


def test_the_runtime_runs_the_same_kernels_in_branches(files: tuple[Path, Path]) -> None:
    """Also the same number of changes of layout, but for one at each border."""
    flat, branches = (executed_operators(path) for path in files)
    added = Counter({name: count for name, count in (branches - flat).items()})
    selecting = {"If", "Or", "Cast", "ReduceMin", "Gather", "Squeeze", "Identity", "Where"}
    assert set(added) <= selecting | {"Transpose", "ReorderOutput", "ReorderInput"}
    assert added["Transpose"] <= 2
    assert not set(flat - branches) - {"Transpose", "DequantizeLinear"}


def test_layers_in_branches_are_inspected(files: tuple[Path, Path]) -> None:
    flat, branches = files
    layers = {path: {layer.name: layer.quantized for layer in inspect_quantization(path)} for path in files}
    assert layers[flat] == layers[branches]
    assert {"network.layer3.0.conv2", "exits.1.linear"} <= layers[branches].keys()
    macs = [{name: shapes.macs() for name, shapes in layer_shapes(path).items()} for path in files]
    assert macs[0] == macs[1]
    if all(layers[branches].values()):
        require_quantized(branches)
        assert "Softmax" not in float_operators(branches, decodes=True)
    else:
        with pytest.raises(ValueError, match="with float layers"):
            require_quantized(branches)


def test_weights_are_in_the_branch_that_reads_them(files: tuple[Path, Path]) -> None:
    graph = onnx.load(str(files[1])).graph
    assert not any("layer3" in tensor.name for tensor in graph.initializer)
    names = [node.name for node in all_nodes(graph)]
    assert len(set(names)) == len(names)
    inputs = {value.name for value in graph.input}
    assert inputs == {"image", THRESHOLDS}
    assert {tensor.name for tensor in graph.initializer} >= {THRESHOLDS}


def test_the_same_graph_gives_the_same_bytes(files: tuple[Path, Path]) -> None:
    flat, branches = files
    model = onnx.load(str(flat))
    branch_on_selections(model)
    assert model.SerializeToString(deterministic=True) == branches.read_bytes()


def test_a_graph_without_a_selection_is_refused(tmp_path: Path) -> None:
    export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), tmp_path / "model.onnx", SHAPE)
    with pytest.raises(ValueError, match="ends in Gemm; expected a selection"):
        branch_on_selections(onnx.load(str(tmp_path / "model.onnx")))


def test_thresholds_that_are_equal_stay_apart(tmp_path: Path) -> None:
    """The exporter merges constants of one value."""
    network = exiting()
    set_choice(network, [1.0, 1.0], [0.5, 0.5])
    export_onnx(network, tmp_path / "model.onnx", SHAPE, branches=True)
    (value,) = open_session(tmp_path / "model.onnx").get_overridable_initializers()
    assert (value.name, value.shape) == (THRESHOLDS, [2])
    assert set(run(tmp_path / "model.onnx", IMAGES.numpy(), thresholds=[NEVER, 0.0])[1]) == {1}
    with torch.no_grad():
        wanted = network(IMAGES).numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", IMAGES.numpy())[0], wanted, atol=1e-5)
