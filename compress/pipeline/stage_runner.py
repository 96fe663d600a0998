"""Makes a stage's folder: computes its network, writes and measures its files. Cached stages do not need it."""

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compress.config.schema import Config
from compress.evaluation.emissions import TRACKED, track_cost
from compress.evaluation.environment import versions
from compress.evaluation.evaluate import StageFolder, evaluate_stage
from compress.evaluation.int8_loss import validation_loss
from compress.export import TARGETS, Source, load_target
from compress.export.nms import add_nms
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import float_operators, inspect_quantization, require_quantized
from compress.methods.quantization.advice import advise
from compress.methods.quantization.cpu_target import mismatch
from compress.methods.quantization.float_share import INT8_MACS, read_float_share, require_int8
from compress.methods.restore import restore_float
from compress.models import is_library
from compress.models.artifact import Artifact, write_model, write_tensors
from compress.models.registry import backbone_name
from compress.pipeline.compute import RunContext, StageJob, compute_stage, stage_seed
from compress.report.html import sensitivity_page
from compress.stages import networks
from compress.tasks import TASKS
from compress.training.tensorboard import TensorBoardWriter
from compress.utils import files
from compress.utils.cpu import cpu_flags
from compress.utils.errors import UserError
from compress.utils.latency import headline_latency_ms
from compress.utils.metric import metric_of
from compress.utils.missing import earlier_figures

_SPREAD_IMAGES = 64  # images on which the ranges of channels are compared

log = logging.getLogger("compress")


def compute_and_evaluate(
    name: str, stage_dir: Path, done: list[Path], inputs: dict[str, Any], run: RunContext
) -> dict[str, Any]:
    """Computes a stage from the folders of those before it and writes its folder; returns the record of stage.json."""
    log.info("%s: starts", name)
    start = time.perf_counter()
    files.fresh_folder(stage_dir)
    config, data = run.config, run.data
    if not done and _needs_dry_run(config):
        from compress.pipeline.dry_run import require_compressible  # imported late: it takes most of a second

        require_compressible(config, data)
    with TensorBoardWriter(stage_dir.parent / "tensorboard" / stage_dir.name) as curves:
        with track_cost(config.measure.country, run.device) as spent:
            result = compute_stage(StageJob(name, stage_dir, list(done), inputs), run, curves)
        write_model(result, stage_dir)
        export_onnx(
            result.network.cpu(),
            stage_dir / files.ONNX,
            data.shape,
            TASKS[data.task].files,
            branches=result.spec.exits is not None,
        )
        left_out, quantization = result.left_out, result.spec.quantization
        int8: dict[str, Any] = {}
        if quantization:
            rows, int8 = _check_int8(stage_dir / files.ONNX, result, quantization, config.quantize.allow_float)
            left_out = left_out + rows
            if remark := mismatch(quantization["target"], cpu_flags()):
                log.warning("%s: %s", name, remark)
                result.notes["target"] = remark
        if result.sensitivity:
            _write_sensitivity(result.sensitivity, stage_dir, curves)
        metrics = _export_and_evaluate(name, stage_dir, done[0] if done else stage_dir, spent | int8, run)
        if quantization:
            _note_int8_loss(stage_dir, done[-1], result, run)
        if filters := result.notes.get("filters"):
            curves.by_layer("filters_left_percent", (100 * after / before for before, after in filters.values()))
    duration_s = round(time.perf_counter() - start, 3)
    record = _run_record(inputs, run, duration_s) | {"left_out": left_out, "notes": result.notes}
    files.finish_stage(stage_dir, record)
    log.info(
        "%s: %.2f %% deployed, %.3f ms an image",
        name, metric_of(metrics).percent(metrics), headline_latency_ms(metrics),
    )  # fmt: skip
    if left_out:
        log.info("%s: left out %d layers, named in %s", name, len(left_out), files.STAGE)
    return _written(stage_dir, record["key"])


def _run_record(inputs: dict[str, Any], run: RunContext, duration_s: float) -> dict[str, Any]:
    """Returns what stage.json says of the run, and of what the stage was computed from."""
    return {
        "key": files.digest_of(inputs),
        "inputs": inputs,
        "config": asdict(run.config),
        "device": str(run.device),
        "threads": run.threads,
        "processes": run.ranks.world,
        "conditions": run.evaluation_settings(),
        "versions": versions(),
        "duration_s": duration_s,
        "images": run.data.sizes,
        "validation": {"from": run.data.val_from, "images": len(run.data.val)},
    }


def _needs_dry_run(config: Config) -> bool:
    """Whether a run starts with a dry run; the networks of the zoo need none."""
    return bool(config.teacher.factory) or any(is_library(backbone_name(network.name)) for network in networks(config))


def reexport_stage(
    name: str, stage_dir: Path, done: list[Path], record: dict[str, Any], run: RunContext
) -> dict[str, Any]:
    """Writes and measures a finished stage again in a new folder, which then replaces the old one.

    The trained weights are never at risk: the old folder stays whole until the end.
    """
    new_dir = stage_dir.with_name(f"{stage_dir.name}.anew")
    files.fresh_folder(new_dir)
    for kept in (files.MODEL, files.SPEC, files.ONNX, files.OUTPUTS, files.SENSITIVITY, files.SENSITIVITY_PLOT):
        if (stage_dir / kept).is_file():
            shutil.copyfile(stage_dir / kept, new_dir / kept)
    before = files.read_json(stage_dir / files.METRICS)
    spent = earlier_figures(before, TRACKED) | ({INT8_MACS: before[INT8_MACS]} if INT8_MACS in before else {})
    _export_and_evaluate(name, new_dir, done[0] if done else new_dir, spent, run)
    now = {"config": asdict(run.config), "threads": run.threads, "conditions": run.evaluation_settings()}
    files.finish_stage(new_dir, record | now)
    shutil.rmtree(stage_dir)
    new_dir.rename(stage_dir)
    return _written(stage_dir, record["key"])


def _written(stage_dir: Path, key: str) -> dict[str, Any]:
    """Returns the record of a stage that was just finished. Raises UserError where its files changed meanwhile."""
    record = files.finished_stage(stage_dir, key)
    if record is None:
        raise UserError(
            f"{stage_dir}, whose files changed while they were written",
            "a folder that no other process writes into",
            "start the same command again",
        )
    return record


def _export_and_evaluate(
    name: str, stage_dir: Path, teacher: Path, spent: dict[str, Any], run: RunContext
) -> dict[str, Any]:
    """Writes the other targets of a stage that has its model.onnx and measures all; returns metrics.json's content."""
    config, data = run.config, run.data
    left_out, calibration = {}, None
    targets = [target for target in config.export.targets if target in TARGETS]
    if targets and files.read_json(stage_dir / files.SPEC)["quantization"]:
        samples = data.train.take(config.quantize.calibration_samples, stage_seed(config, name))
        calibration = [images for images, _ in samples.batches()]
    for target in targets:
        network, outputs = restore_float(stage_dir), TASKS[data.task].files
        source = Source(stage_dir, stage_dir / files.ONNX, network, calibration, data.shape, outputs)
        left_out[target] = load_target(target).export(source)
        if left_out[target]:
            log.info("%s: %s leaves out %d layers, named in %s", name, target, len(left_out[target]), files.METRICS)
    if config.export.nms:
        add_nms(stage_dir / files.ONNX, stage_dir / files.NMS_ONNX)
    folder = StageFolder(stage_dir, teacher, spent, left_out)
    measured = evaluate_stage(folder, data, config.measure, run.device, run.threads)
    write_tensors(stage_dir / files.PREDICTIONS, measured.predictions)
    files.write_json(stage_dir / files.METRICS, measured.metrics)
    described = files.read_json(stage_dir / files.SPEC)
    files.write_json(stage_dir / files.SPEC, described | {"temperature": measured.metrics.get("temperature") or 1.0})
    files.write_json(stage_dir / files.PROFILE, measured.profile)
    if measured.examples:
        write_tensors(stage_dir / files.EXAMPLES, measured.examples)
    if measured.exits:
        write_tensors(stage_dir / files.EXITS, measured.exits)
    return measured.metrics


def _check_int8(
    path: Path, result: Artifact, quantization: dict[str, Any], allow_float: bool
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Returns the layers that no int8 kernel can run, with reasons, and the share of the MACs that is int8.

    Raises ValueError where the runtime runs other layers than expected in float, and UserError where most of the
    arithmetic is float although the user did not allow that.
    """
    decodes = TASKS[result.spec.task].files.compute is not None or result.spec.exits is not None
    floats = {layer.name for layer in inspect_quantization(path) if not layer.quantized}
    require_quantized(path, tuple(floats))
    chosen = quantization["float_layers"]
    if not floats.issuperset(chosen):
        raise ValueError(f"received {path} with int8 weights in {sorted(set(chosen) - floats)}; expected float ones")
    share = read_float_share(path, result.network, chosen)
    require_int8(share, result.spec.architecture["model"], allow_float)
    if remark := share.remark():
        log.warning("quantize: %s", remark)
        result.notes["float_layers"] = remark
    rows = [{"layer": layer.layer, "reason": layer.reason} for layer in share.layers]
    rows += [
        {"layer": f"{operator} ({count})", "reason": "ONNX Runtime has no int8 kernel for it"}
        for operator, count in float_operators(path, decodes).items()
    ]
    return rows, {INT8_MACS: share.int8_macs_percent}


def _note_int8_loss(stage_dir: Path, before: Path, result: Artifact, run: RunContext) -> None:
    """Logs and notes which setting would help, where int8 lost accuracy beyond chance."""
    loss = validation_loss(before / files.ONNX, stage_dir / files.ONNX, run.data.val, run.threads, TASKS[run.data.task])
    if loss is None:
        return
    images = torch.cat([images for images, _ in run.data.train.take(_SPREAD_IMAGES, 0).batches()])
    advice = advise(restore_float(before), images, run.config.quantize, loss)
    log.warning("quantize: %s", advice)
    result.notes["int8_loss"] = advice


def _write_sensitivity(table: dict[str, Any], stage_dir: Path, curves: TensorBoardWriter) -> None:
    """Writes the table and its chart into the stage's folder, and its figures into TensorBoard."""
    files.write_json(stage_dir / files.SENSITIVITY, table)
    files.write_bytes(stage_dir / files.SENSITIVITY_PLOT, sensitivity_page(table, stage_dir.name).encode())
    curves.by_layer("int8_kl_nats", (row["kl_nats"] for row in table["layers"]))
