"""Estimates the result of a run in seconds, without training: what can be pruned, traced and quantized."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from compress.config.schema import Config
from compress.data.dataset import Data
from compress.evaluation.benchmark import time_and_memory
from compress.evaluation.flops import count_cost
from compress.methods.pruning.reconstruction import skipped_layers
from compress.methods.restore import restore
from compress.models.artifact import Artifact
from compress.models.from_config import teacher_from_config
from compress.pipeline.compute import prepare_machine, read_data, require_networks_fit
from compress.pipeline.dry_run import DryRunStage, try_export, try_stages
from compress.pipeline.preprocessing import with_preprocessing
from compress.stages import check_order
from compress.utils.files import write_json
from compress.utils.units import count_text, size_text

PREFLIGHT = "preflight.json"

_REPETITIONS = 20  # enough for a rough latency
_NAMES = 3  # layers printed for each reason; the file has all

_SMALLER = ("factorize", "prune", "search_architecture")  # stages that take a target
_EXITS = "ms are those of an image that goes to the last end; how many leave before is known of a trained network alone"
_FIGURES = ("size_bytes", "latency_ms_p50", "speedup_vs_teacher")


def run_preflight(config: Config, folder: Path) -> dict[str, Any]:
    """Writes preflight.json, prints it and returns it; trains nothing and writes no stage.

    MACs, sizes and latencies are those of files with untrained weights, on which they do not depend. The choice of the
    pruned filters does. Raises UserError as a run would, and where the network cannot be pruned or exported at all.
    """
    check_order(config.stages)
    _, threads = prepare_machine(config)
    config = with_preprocessing(config)
    data = read_data(config)
    teacher, model = _teacher(config, data)
    measure = replace(config.measure, repetitions=_REPETITIONS)
    expected: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch_dir:
        tried = try_stages(config, data, Path(scratch_dir))
        last, student = tried[-1], _last_float(tried)
        layers, remarks = _pruned_layers(tried, config, data)
        first = Path(scratch_dir, "teacher.onnx")
        for name, network in {"teacher": teacher, "float": student.network}.items():
            _randomize_batch_norm(network)
            file = Path(scratch_dir, f"{name}.onnx")
            try_export(network, data, file, model, network is student.network and student.spec.exits is not None)
            expected[name] = _expected_figures(network, file, first, data, measure, threads)
        if last.artifact.spec.quantization:
            expected["int8"] = _expected_figures(student.network, last.file, first, data, measure, threads)
    floats = last.stays_float
    if student.spec.exits:
        remarks = [*remarks, _EXITS]
    remarks = remarks + [text for name in _SMALLER if name in config.stages for text in _left_to_the_run(config, name)]
    found = {
        "model": model,
        "layers": layers,
        "targets": _targets(config, tried),
        "remarks": remarks,
        "stays_float": floats,
        "expected": expected,
    }
    write_json(folder / PREFLIGHT, found)
    _print(found)
    return found


def _teacher(config: Config, data: Data) -> tuple[nn.Module, str]:
    """Returns the network that a run would train, with its initial weights, and its name."""
    require_networks_fit(config, data)
    torch.manual_seed(config.seed)
    network, architecture, _ = teacher_from_config(config.teacher, data.shape, len(data.classes))
    return network.eval(), architecture.model


def _last_float(tried: list[DryRunStage]) -> Artifact:
    return next(stage.artifact for stage in reversed(tried) if not stage.artifact.spec.quantization)


def _targets(config: Config, tried: list[DryRunStage]) -> dict[str, dict[str, Any]]:
    """Returns what each stage with a target was asked for and reached, by the stage's name."""
    notes = {name: stage.artifact.notes for name, stage in zip(config.stages, tried, strict=True)}
    return {name: notes[name]["target"] for name in _SMALLER if name in notes and "target" in notes[name]}


def _pruned_layers(tried: list[DryRunStage], config: Config, data: Data) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a row for each layer with its filters before and after pruning, and remarks on what is not refitted.

    Both are empty where no stage prunes.
    """
    if "prune" not in config.stages:
        return [], []
    at = config.stages.index("prune")
    pruned = tried[at].artifact
    reasons = {row["layer"]: row["reason"] for row in reversed(pruned.left_out)}
    layers = [
        {"layer": name, "filters": before, "left": left, "reason": reasons.get(name)}
        for name, (before, left) in pruned.notes["filters"].items()
    ]
    if not config.prune.reconstruction_samples:
        return layers, []
    before = restore(tried[at - 1].folder, torch.device("cpu")).network
    rows = skipped_layers(pruned.network, before, torch.zeros(1, *data.shape))
    return layers, [f"{row['layer']}: {row['reason']}" for row in rows]


def _left_to_the_run(config: Config, stage: str) -> list[str]:
    """Returns what a trained network alone can decide about a stage that makes it smaller."""
    settings, remarks = getattr(config, stage), []
    shown = f"{stage}.ratio={settings.ratio}" if hasattr(settings, "ratio") else "the whole network"
    if getattr(settings, "trials", 0):
        remarks.append(
            f"{stage} compares trained sub-networks; here the one is shown whose layers are all alike narrower"
        )
    if getattr(settings, "scope", "") == "sensitivity":
        remarks.append(f"{stage}.scope=sensitivity spreads the cut by a trained network; here every layer loses alike")
    if settings.target.max_drop_points is not None:
        other = "" if len(settings.target.asked()) > 1 else f"; here {shown} is shown"
        remarks.append(f"{stage}.target.max_drop_points is measured on a trained network{other}")
    return remarks


def _randomize_batch_norm(network: nn.Module) -> None:
    """Draws statistics of batch norm, as after training: the exporter saves space where all are zeros or ones."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)


def _expected_figures(
    network: nn.Module, file: Path, teacher: Path, data: Data, measure: Any, threads: int
) -> dict[str, float]:
    params, macs = count_cost(network, data.shape)
    figures = time_and_memory(file, teacher, data.shape, measure, threads)
    return {"params": params, "macs": macs} | {name: figures[name] for name in _FIGURES}


def _print(found: dict[str, Any]) -> None:
    """Prints the tables, 80 columns wide."""
    console = get_console()
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("expected", "params", "MACs", "size", "ms", "faster"):
        table.add_column(heading, justify="left" if heading == "expected" else "right", no_wrap=True)
    for name, row in found["expected"].items():
        table.add_row(
            name,
            count_text(row["params"]),
            count_text(row["macs"]),
            size_text(row["size_bytes"]),
            f"{row['latency_ms_p50']:.2f}",
            f"{row['speedup_vs_teacher']:.2f}x",
        )
    console.print(table)
    console.print("of files with untrained weights, in ONNX Runtime; ms of one image; accuracy takes a run\n")
    for stage, target in found["targets"].items():
        for name, limit in target["asked"].items():
            reached = target["reached"][name]
            console.print(f"{stage}.target.{name}: {limit:.4g} asked, {reached:.4g} reached", markup=False)
    lost = [row for row in found["layers"] if row["left"] < row["filters"]]
    if found["layers"]:
        console.print(f"{len(lost)} of {len(found['layers'])} layers lose filters. The others keep all:")
    _print_reasons([row for row in found["layers"] if row not in lost])
    if found["stays_float"]:
        console.print("These stay float in the int8 file:")
    _print_reasons(found["stays_float"])
    for remark in found["remarks"]:
        console.print(remark, markup=False)


def _print_reasons(rows: list[dict[str, Any]]) -> None:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["reason"], []).append(row["layer"])
    for reason, names in reasons.items():
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        get_console().print(f"  {', '.join(names[:_NAMES])}{more}: {reason}", markup=False)
