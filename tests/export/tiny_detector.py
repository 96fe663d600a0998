"""A run of a detector without a network: its file finds two boxes, scored by the means of red, green and blue."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.utils.files import ONNX, SPEC, finish_stage, write_json

SIDE = 32
CLASSES = ["red", "green", "blue"]
BOXES = [[8.0, 4.0, 24.0, 20.0], [0.0, 24.0, 32.0, 32.0]]  # in pixels of the square that the file reads
SHARES = [1.0, 0.5]  # of the mean of a colour: the score of each box


def write_detector(run: Path) -> Path:
    """Writes the run's only stage; returns the run."""
    stage = run / "01_teacher"
    stage.mkdir(parents=True)
    onnx.save(_model(), stage / ONNX)
    described = {"shape": [3, SIDE, SIDE], "mean": [0.0] * 3, "std": [1.0] * 3, "resize": "stretch"}
    write_json(
        stage / SPEC, {"task": "detection", "classes": CLASSES, "input": described, "quantization": None, "pruning": []}
    )
    finish_stage(stage, {})
    return run


def _model() -> onnx.ModelProto:
    """Returns a model from images (N, 3, S, S) to boxes (N, 2, 4) and scores (N, 2, 3)."""
    constants = {
        "rows": np.array([-1, 1, 3], dtype=np.int64),
        "shares": np.array(SHARES, dtype=np.float32).reshape(1, 2, 1),
        "zero": np.zeros(1, dtype=np.float32),
        "fixed": np.array(BOXES, dtype=np.float32)[None],
        "columns": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Reshape", ["means", "rows"], ["colours"]),
        helper.make_node("Mul", ["colours", "shares"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "columns"], ["sums"], keepdims=1),
        helper.make_node("Mul", ["sums", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "fixed"], ["boxes"]),  # as many as there are images
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 2, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
