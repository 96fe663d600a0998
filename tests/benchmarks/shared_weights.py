"""One file of two widths, with weights of its own for each or shared ones: `python tests/benchmarks/shared_weights.py`.

ResNet-56, untrained, float32. Shared, each filter of the narrow network is picked from the wide one's and scaled, which
ONNX Runtime does once, when it opens the file. Times are of the processor, one thread, so that other programs count
little; the files take turns in one process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from compress.evaluation.environment import environment
from compress.export.onnx import export_onnx
from compress.export.onnx_branches import all_nodes, branch_on_selections
from compress.export.onnx_session import open_session
from compress.methods.dynamic_width.channels import Narrower, narrower_networks
from compress.methods.dynamic_width.network import DynamicWidthNetwork
from compress.models import Architecture, build
from compress.tasks import CLASSIFICATION
from compress.utils.exit_names import NEVER

SHAPE = (3, 32, 32)


def main() -> None:
    """Prints a Markdown table with a row a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    files = files_of(options.width)
    sessions = {way: open_session(content, threads=1) for way, content in files.items()}
    image = np.random.default_rng(0).standard_normal((1, *SHAPE), dtype=np.float32)
    ends = {"ends narrow": 0.0, "goes on to the wide": NEVER}
    results = {
        (way, end): session.run(["logits"], {"image": image, "thresholds": np.array([threshold], np.float32)})[0]
        for way, session in sessions.items()
        for end, threshold in ends.items()
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in results}
    for turn in range(-5, options.rounds):  # those before 0 are warm-up
        for way, end in times:
            start = time.process_time()
            sessions[way].run(None, {"image": image, "thresholds": np.array([ends[end]], np.float32)})
            if turn >= 0:
                times[way, end].append(1000 * (time.process_time() - start))
    print(environment(1))
    print("\n| weights | bytes | ms, ends narrow | ms, goes on to the wide | largest difference |")
    print("|---|---:|---:|---:|---:|")
    for way, content in files.items():
        cells = [f"{statistics.median(times[way, end]):.3f}" for end in ends]
        difference = max(float(np.abs(results[way, end] - results["own", end]).max()) for end in ends)
        print(f"| {way} | {len(content):,} | {' | '.join(cells)} | {difference:.1e} |")


def files_of(width: float) -> dict[str, bytes]:
    """Returns the two files."""
    torch.manual_seed(0)
    network = build(Architecture("resnet56", "small", 3, 10)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    (narrower,) = narrower_networks(network, torch.zeros(1, *SHAPE), [width], 8, f"--width {width}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(DynamicWidthNetwork([narrower.network], network).eval(), path, SHAPE, CLASSIFICATION.files)
        flat = path.read_bytes()
    own, shared = onnx.load_from_string(flat), onnx.load_from_string(flat)
    branch_on_selections(own)
    share_weights(shared, narrower)
    branch_on_selections(shared)
    return {"own": own.SerializeToString(), "shared": shared.SerializeToString()}


def share_weights(model: onnx.ModelProto, narrower: Narrower) -> None:
    """Replaces the weights of the narrow network's convolutions by places of the wide one's, scaled, in place."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    added: list[onnx.NodeProto] = []
    for name, places in narrower.places.items():
        own, wide = f"narrower.0.{name}", f"network.{name}"
        if len(places) != 2 or own not in stored or wide not in stored:
            continue
        wanted, whole = (numpy_helper.to_array(stored[key]) for key in (own, wide))
        picked, value = whole, wide
        for dim, numbers in enumerate(places):
            picked = picked.take(numbers.numpy(), dim)
            at = numpy_helper.from_array(numbers.numpy(), f"{own}/numbers_{dim}")
            graph.initializer.append(at)
            added.append(helper.make_node("Gather", [value, at.name], [f"{own}/picked_{dim}"], axis=dim))
            value = added[-1].output[0]
        rows = (len(wanted), -1)
        scale = (wanted * picked).reshape(rows).sum(1) / np.square(picked).reshape(rows).sum(1)
        scale = scale.reshape(-1, *(1,) * (wanted.ndim - 1)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(scale, f"{own}/scale"))
        added.append(helper.make_node("Mul", [value, f"{own}/scale"], [own]))
        graph.initializer.remove(stored[own])
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    print(f"{len(added) // 3} of {sum(node.op_type == 'Conv' for node in all_nodes(graph)) // 2} layers share weights")


if __name__ == "__main__":
    main()
