"""Notes of a prune stage as stage.json holds them, and runs that have them."""

import json
from pathlib import Path
from typing import Any

from compress.report.run_files import RunRecord, load_run
from tests.report.tiny_run import write_tiny_run

TARGET = {
    "asked": {"latency_ms": 4.0},
    "reached": {
        "macs": 61_200_000, "macs_share": 0.497, "params": 410_000, "params_share": 0.48, "size_bytes": None,
        "latency_ms": 3.91, "speedup": 1.9, "drop_points": None,
    },
    "predicted": {"latency_ms": 3.84},
    "measured": {"latency_ms": 3.91},
    "search": [
        {"position": 0.0, "macs_share": 1.0, "latency_ms": 8.1, "met": False},
        {"position": 1.0, "macs_share": 0.1, "latency_ms": 1.2, "met": True},
        {"position": 0.5, "macs_share": 0.49, "latency_ms": 3.8, "drop_points": None, "met": True},
    ],
    "seconds": 12.3,
}  # fmt: skip
STEPS = [
    {"macs_share": 0.8, "filters_left_percent": 85.0, "val_top1_percent": 91.2},
    {"macs_share": 0.6, "filters_left_percent": 70.0, "val_top1_percent": 90.9},
    {"macs_share": 0.5, "filters_left_percent": 60.0, "val_top1_percent": 89.1},
]
CURVE = [[16, 0.0], [14, 0.001], [8, 0.1], [4, 1.0]]


def sensitivity(groups: int) -> dict[str, Any]:
    rows = [
        {"layers": [f"layer{at}.conv", f"layer{at}.other"], "filters": 16, "left": 8, "curve": CURVE}
        for at in range(groups)
    ]
    return {"images": 256, "distance": "nats", "seconds": 95.1, "groups": rows}


def with_notes(folder: Path, stage: str = "02_prune", **notes: Any) -> Path:
    """A run in which a stage has these notes; one that is there gets them too."""
    path = (folder if (folder / stage).is_dir() else write_tiny_run(folder)) / stage / "stage.json"
    record = json.loads(path.read_text())
    record["notes"] |= notes
    path.write_text(json.dumps(record))
    return folder


def run_with(folder: Path, **notes: Any) -> RunRecord:
    return load_run(with_notes(folder, **notes))
