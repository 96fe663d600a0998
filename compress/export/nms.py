"""Adds ONNX's non-maximum suppression to a detector's file, so that it returns final boxes."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.utils.detections import MAX_IOU, MIN_SCORE, MOST

COLUMNS = ("image", "class", "score", "x1", "y1", "x2", "y2")  # of the file's output `detections`


def add_nms(source: Path, path: Path) -> None:
    """Writes the file `source`, with the outputs `boxes` and `scores`, to `path` with one output, `detections`.

    It is float32 (D, 7), a row a box: the number of its image, its class, its score, and the box in pixels.
    """
    model = onnx.load(str(source))
    graph = model.graph
    constants = {
        "nms_most": np.array([MOST], np.int64),
        "nms_max_iou": np.array([MAX_IOU], np.float32),
        "nms_min_score": np.array([MIN_SCORE], np.float32),
        "nms_image_and_box": np.array([0, 2], np.int64),
        "nms_image_and_class": np.array([0, 1], np.int64),
        "nms_last": np.array([-1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    node = helper.make_node
    graph.node.extend(
        [
            node("Transpose", ["scores"], ["nms_by_class"], "nms/Transpose", perm=[0, 2, 1]),
            node(
                "NonMaxSuppression",
                ["boxes", "nms_by_class", "nms_most", "nms_max_iou", "nms_min_score"],
                ["nms_chosen"],
                "nms/NonMaxSuppression",
            ),
            node("Gather", ["nms_chosen", "nms_image_and_box"], ["nms_places"], "nms/Gather", axis=1),
            node("GatherND", ["boxes", "nms_places"], ["nms_boxes"], "nms/GatherND"),
            node("GatherND", ["nms_by_class", "nms_chosen"], ["nms_scores"], "nms/GatherND_1"),
            node("Unsqueeze", ["nms_scores", "nms_last"], ["nms_score"], "nms/Unsqueeze"),
            node("Gather", ["nms_chosen", "nms_image_and_class"], ["nms_numbers"], "nms/Gather_1", axis=1),
            node("Cast", ["nms_numbers"], ["nms_labels"], "nms/Cast", to=TensorProto.FLOAT),
            node("Concat", ["nms_labels", "nms_score", "nms_boxes"], ["detections"], "nms/Concat", axis=1),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["D", len(COLUMNS)]))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
