"""What a gate saves that switches off half of the channels by the image: `python tests/benchmarks/channel_gating.py`.

A chain of 3x3 convolutions in ONNX Runtime, float32, one thread. The gate is an input of the file, so that it costs
nothing itself. Each way takes turns with the others in one process; times are of the processor, so that other programs
count little, and a ratio is one of medians.
"""

import argparse
import statistics
import time

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compress.evaluation.environment import environment
from compress.export.onnx_session import open_session

CHANNELS, SIZE, LAYERS = 64, 28, 8
WAYS = {
    "whole": "all channels",
    "masked": "half of the outputs of each convolution multiplied by 0",
    "gathered": "the weights of the other half picked by the gate before each convolution",
    "half": "a file that has only half of the channels",
}


def main() -> None:
    """Prints a Markdown table with a row a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    print(environment(1))
    sessions = {way: open_session(file_of(way), threads=1) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(-10, options.rounds):  # those before 0 are warm-up
        for way, session in sessions.items():
            start = time.process_time()
            session.run(None, inputs(way))
            if turn >= 0:
                times[way].append(1000 * (time.process_time() - start))
    medians = {way: statistics.median(values) for way, values in times.items()}
    print("\n| way | ms | of the whole |\n|---|---:|---:|")
    for way, text in WAYS.items():
        print(f"| {text} | {medians[way]:.3f} | {medians[way] / medians['whole']:.2f} |")


def inputs(way: str) -> dict[str, np.ndarray]:
    """Returns an image (1, C, H, W), and what the gate says of it."""
    channels = CHANNELS // 2 if way in ("half", "gathered") else CHANNELS
    image = {"image": np.random.default_rng(0).standard_normal((1, channels, SIZE, SIZE), dtype=np.float32)}
    on = np.arange(CHANNELS) < CHANNELS // 2
    gates = {"masked": on.astype(np.float32).reshape(1, -1, 1, 1), "gathered": np.flatnonzero(on)}
    return image | ({"gate": gates[way]} if way in gates else {})


def file_of(way: str) -> bytes:
    """Returns the ONNX file of a way."""
    random, nodes, weights = np.random.default_rng(0), [], []
    channels = CHANNELS // 2 if way == "half" else CHANNELS
    value = "image"
    for at in range(LAYERS):
        filters = 0.05 * random.standard_normal((channels, channels, 3, 3), dtype=np.float32)
        weights.append(numpy_helper.from_array(filters, f"weight_{at}"))
        nodes += _layer(way, at, value)
        value = nodes[-1].output[0]
    values = inputs(way)
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in values.items()
    ]
    result = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, way, described, [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def _layer(way: str, at: int, value: str) -> list[NodeProto]:
    """Returns the nodes of a convolution that reads `value`, with its ReLU and its gate."""
    nodes, weight = [], f"weight_{at}"
    if way == "gathered":
        for dim in (0, 1):
            picked = f"picked_{at}_{dim}"
            nodes.append(helper.make_node("Gather", [weight, "gate"], [picked], axis=dim))
            weight = picked
    nodes.append(helper.make_node("Conv", [value, weight], [f"conv_{at}"], pads=[1] * 4, kernel_shape=[3, 3]))
    nodes.append(helper.make_node("Relu", [f"conv_{at}"], [f"relu_{at}"]))
    if way == "masked":
        nodes.append(helper.make_node("Mul", [f"relu_{at}", "gate"], [f"masked_{at}"]))
    return nodes


if __name__ == "__main__":
    main()
