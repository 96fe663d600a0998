"""Folders of runs as the pipeline leaves them, written from figures alone: no network is trained."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compress.config.options import describe
from compress.config.schema import Config

NAMES = ("teacher", "prune", "distill", "quantize")
IMAGES = 40


def write_tiny_run(
    folder: Path,
    stages: tuple[str, ...] = NAMES,
    classes: tuple[str, ...] = ("cat", "dog", "cow"),
    delta: tuple[float, float, float] = (-2.5, -6.0, 1.0),
    settings: dict[str, Any] | None = None,
    extras: bool = True,
    **figures: float,
) -> Path:
    """A run in `folder`. The last stage has `delta` points (with its interval) and `figures`, `extras` all files."""
    for number, name in enumerate(stages, 1):
        place = folder / f"{number:02d}_{name}"
        place.mkdir(parents=True)
        last = number == len(stages) and number > 1
        predictions = _predictions(len(classes), wrong=number)
        save_file(predictions, place / "predictions.safetensors")
        save_file({"conv.weight": np.zeros((16, 3, 3, 3), np.float32)}, place / "model.safetensors")
        _write(
            place / "metrics.json", _metrics(number, delta if last else (0.0, -1.0, 1.0)) | (figures if last else {})
        )
        _write(place / "model.json", _spec(classes, pruned="prune" in stages[:number], int8=name == "quantize"))
        if extras:
            _write_extras(place, predictions)
        finish(place, settings or {}, stages)
    _write(folder / "summary.json", {"stages": [{"stage": f"{at:02d}_{name}"} for at, name in enumerate(stages, 1)]})
    if extras:
        _write_run_extras(folder, stages)
    return folder


def finish(place: Path, settings: dict[str, Any], stages: tuple[str, ...] = NAMES) -> None:
    """Writes stage.json, with the digests of what lies in the folder."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}
    record = {
        "inputs": {"data_fingerprint": "f" * 64},
        "config": _config(settings | {"stages": list(stages)}),
        "device": "cpu",
        "threads": 1,
        "versions": {"compress": "0.1.0", "torch": "2.14"},
        "duration_s": 3.2,
        "images": {"train": 100, "test": IMAGES},
        "left_out": [{"layer": "fc", "reason": "its outputs are the logits"}],
        "notes": {},
        "files": digests,
    }
    _write(place / "stage.json", record)


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value, _ in describe(Config()):
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = settings.get(name, value)
    return nested


def _metrics(number: int, delta: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "deployed_top1_percent": 95.0 + delta[0],
        "deployed_top1_ci95_percent": [85.0, 98.0],
        "teacher_agreement_percent": 97.5,
        "top1_delta_points": delta[0],
        "top1_delta_ci95_points": list(delta[1:]),
        "mcnemar_p_value": None if number == 1 else 0.25,
        "images": IMAGES,
        "params": 4000 // number,
        "macs": 100_000 // number,
        "size_bytes": 80_000 // number,
        "latency_ms_p50": 2.0 / number,
        "latency_ms_p95": 2.5 / number,
        "throughput_images_per_s": 900.0 * number,
        "speedup_vs_teacher": float(number),
        "peak_memory_bytes": None,
        "environment": {"cpu": "A CPU", "threads": 1, "versions": {"onnxruntime": "1.23"}},
        "unavailable": {"peak_memory_bytes": "this system does not tell it"},
    }


def _spec(classes: tuple[str, ...], pruned: bool, int8: bool) -> dict[str, Any]:
    return {
        "architecture": {"model": "resnet8"},
        "classes": list(classes),
        "widths": {"conv": [8, 3, 1], "bn": [8]} if pruned else {},
        "quantization": {"mode": "qat", "target": "x86_vnni", "weight_bits": 8} if int8 else None,
    }


def _predictions(classes: int, wrong: int) -> dict[str, np.ndarray]:
    labels = np.arange(IMAGES, dtype=np.int64) % classes
    found = labels.copy()
    found[:wrong] = (found[:wrong] + 1) % classes
    return {"labels": labels, "top1": found, "deployed_top1": found}


def _write_extras(place: Path, predictions: dict[str, np.ndarray]) -> None:
    generator = np.random.default_rng(0)
    heat = generator.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    examples = {
        "images": generator.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8),
        "index": np.arange(4),
        "labels": predictions["labels"][:4],
        "teacher_top1": predictions["labels"][:4],
        "deployed_top1": predictions["deployed_top1"][:4],
        "teacher_heatmap": heat,
        "heatmap": heat,
    }
    save_file(examples, place / "examples.safetensors")
    nodes = [
        {"name": f"node_{at}", "operator": "QLinearConv" if at else "Gemm", "ms": 0.1 * (at + 1), "share_percent": 1.0}
        for at in range(30)
    ]
    _write(place / "profile.json", {"runtime": "onnxruntime", "threads": 1, "runs": 50, "nodes": nodes})
    layers = [
        {"layer": "conv", "kl_nats": 0.002, "kept_float": True},
        {"layer": "fc", "kl_nats": 0.001, "kept_float": False},
    ]
    accuracies = {"float_top1_percent": 96.0, "int8_top1_percent": 94.0, "chosen_top1_percent": 95.5}
    _write(
        place / "sensitivity.json",
        {"images": 20, "max_drop_points": 0.5, "int8_kl_nats": 0.0336, "layers": layers} | accuracies,
    )


def _write_run_extras(folder: Path, stages: tuple[str, ...]) -> None:
    spread = {"mean": 1.0, "std": 0.1, "values": [0.9, 1.1]}
    figures = dict.fromkeys(("deployed_top1_percent", "top1_delta_points", "latency_ms_p50"), spread)
    rows = [{"stage": f"{at:02d}_{name}", "figures": figures} for at, name in enumerate(stages, 1)]
    _write(folder / "repeats.json", {"seeds": [0, 1], "stages": rows})
    control = {
        "name": "random_pruned",
        "against": "02_prune",
        "deployed_top1_percent": 90.0,
        "deployed_top1_ci95_percent": [80.0, 95.0],
        "delta_points": -5.0,
        "delta_ci95_points": [-9.0, -1.0],
        "what": "filters chosen at random",
    }
    left_out = {"control": "dense_from_scratch", "reason": "there is no epoch before int8"}
    _write(folder / "controls.json", {"budget_epochs": 3, "controls": [control], "left_out": [left_out]})
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- recipe=mobilenet_int8\n- data.root=my images\n")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
