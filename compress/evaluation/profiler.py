"""Measures the time of each node of a deployable file by ONNX Runtime's own profiler. Needs no torch."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import onnxruntime

_SUFFIX = "_kernel_time"
_BRANCH = "SequentialExecutor::Execute"  # the event of a branch's execution; that of the `If` around it comes next
# What ONNX Runtime appends to the name of a node, or of its output, when it replaces the node by a faster one.
_RUNTIME = re.compile(r"((?<=/BatchNormalization)_bn)?(_nchwc)?(_token_\d+)?$")


class _Key(NamedTuple):
    """A node; those that the runtime adds have the same names in each branch."""

    name: str
    operator: str
    position: str


def node_times(
    path: str, images: list[numpy.ndarray], options: onnxruntime.SessionOptions, runs: int
) -> list[dict[str, Any]]:
    """Returns each executed node in order: its name, operator, mean milliseconds of `runs` runs, and share of all.

    The names are those of the file's nodes; where several nodes share a name, a number follows it in later ones.
    `images`, each float32 (1, C, H, W), take turns: a node in a branch that a run does not take counts 0 there. The
    first run does not count. `options` are the session's other options.
    """
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for run in range(-1, runs):
            session.run(None, {"image": images[run % len(images)]})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    milliseconds: dict[_Key, float] = {}
    first_end = next(at for at, event in enumerate(events) if event["name"] == "model_run")
    for before, event in zip(events[first_end:], events[first_end + 1 :], strict=False):
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            arguments = event["args"]
            key = _Key(event["name"].removesuffix(_SUFFIX), arguments["op_name"], arguments["node_index"])
            branch = before["dur"] if before["name"] == _BRANCH else 0  # its nodes have events of their own
            milliseconds[key] = milliseconds.get(key, 0.0) + (event["dur"] - branch) / runs / 1000
    total = sum(milliseconds.values())
    names = _file_names([key.name for key in milliseconds])
    return [
        {"name": name, "operator": key.operator, "ms": ms, "share_percent": 100 * ms / total}
        for name, (key, ms) in zip(names, milliseconds.items(), strict=True)
    ]


def _file_names(names: list[str]) -> list[str]:
    """Returns the names in the file from the names that the runtime made of them."""
    found: dict[str, None] = {}
    for name in names:
        name = _RUNTIME.sub("", name.rstrip("/"))
        numbered = (f"{name}_{number}" for number in range(1, len(names) + 1))
        found[name if name not in found else next(other for other in numbered if other not in found)] = None
    return list(found)
