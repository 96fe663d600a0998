"""Measures the time of each node of a deployable file by ONNX Runtime's own profiler. Needs no torch."""

import json
import re
import tempfile
from pathlib import Path

import numpy
import onnxruntime

_SUFFIX = "_kernel_time"
# What ONNX Runtime appends to the name of a node, or of its output, when it replaces the node by a faster one.
_RUNTIME = re.compile(r"((?<=/BatchNormalization)_bn)?(_nchwc)?(_token_\d+)?$")


def node_times(path: str, image: numpy.ndarray, options: onnxruntime.SessionOptions, runs: int) -> list[dict]:
    """Returns each executed node in order: its name, operator, mean milliseconds of `runs` runs, and share of all.

    The names are those of the file's nodes; where several nodes share a name, a number follows it in later ones.
    `image` is float32 (1, C, H, W). The first run does not count. `options` are the session's other options.
    """
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[str, dict] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            node = nodes.setdefault(name, {"name": name, "operator": event["args"]["op_name"], "microseconds": []})
            node["microseconds"].append(event["dur"])
    means = {name: sum(node["microseconds"][1:]) / runs / 1000 for name, node in nodes.items()}
    total = sum(means.values())
    return [
        {"name": name, "operator": nodes[found]["operator"], "ms": ms, "share_percent": 100 * ms / total}
        for name, (found, ms) in zip(_file_names(list(means)), means.items(), strict=True)
    ]


def _file_names(names: list[str]) -> list[str]:
    """Returns the names in the file from the names that the runtime made of them."""
    found: dict[str, None] = {}
    for name in names:
        name = _RUNTIME.sub("", name.rstrip("/"))
        numbered = (f"{name}_{number}" for number in range(1, len(names) + 1))
        found[name if name not in found else next(other for other in numbered if other not in found)] = None
    return list(found)
