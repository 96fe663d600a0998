"""Makes a stage's folder: computes its network, writes its files, measures them; what a run of hits goes without."""

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
from compress.export.onnx import export_onnx
from compress.export.onnx_inspect import float_operators, inspect_quantization, require_quantized
from compress.methods.quantization.advice import advise
from compress.methods.quantization.cpu_target import mismatch
from compress.methods.quantization.float_share import INT8_MACS, read_float_share, require_int8
from compress.methods.restore import restore_float
from compress.models.artifact import Artifact, write_model, write_tensors
from compress.pipeline.compute import Job, Run, compute_stage, stage_seed
from compress.report.html import sensitivity_page
from compress.stages import networks
from compress.tasks import TASKS
from compress.training.tensorboard import TensorBoardWriter
from compress.utils import files
from compress.utils.cpu import cpu_flags
from compress.utils.metric import metric_of
from compress.utils.missing import earlier_figures

_SPREAD_IMAGES = 64  # on which the ranges of channels are compared

log = logging.getLogger("compress")


def compute_and_evaluate(name: str, stage: Path, done: list[Path], inputs: dict[str, Any], run: Run) -> dict[str, Any]:
    """Computes one stage from the folders of those before it, writes its folder, returns stage.json's record."""
    log.info("%s: starts", name)
    start = time.perf_counter()
    files.fresh_folder(stage)
    config, data = run.config, run.data
    if not done and _is_tried(config):
        from compress.pipeline.dry_run import require_compressible  # most of a second, which other stages do without

        require_compressible(config, data)
    with TensorBoardWriter(stage.parent / "tensorboard" / stage.name) as curves:
        with track_cost(config.measure.country, run.device) as spent:
            result = compute_stage(Job(name, stage, list(done), inputs), run, curves)
        write_model(result, stage)
        export_onnx(result.network.cpu(), stage / files.ONNX, data.shape)
        left_out, int8 = result.left_out, {}
        if result.spec.quantization:
            rows, int8 = _check_int8(stage / files.ONNX, result, config.quantize.allow_float)
            left_out = left_out + rows
        if result.spec.quantization and (remark := mismatch(result.spec.quantization["target"], cpu_flags())):
            log.warning("%s: %s", name, remark)
            result.notes["target"] = remark
        if result.sensitivity:
            _write_sensitivity(result.sensitivity, stage, curves)
        metrics = _deploy(name, stage, done[0] if done else stage, spent | int8, run)
        if result.spec.quantization:
            _tell_loss(stage, done[-1], result, run)
        if filters := result.notes.get("filters"):
            curves.by_layer("filters_left_percent", (100 * after / before for before, after in filters.values()))
    record = {
        "key": files.digest_of(inputs),
        "inputs": inputs,
        "config": asdict(config),
        "device": str(run.device),
        "threads": run.threads,
        "processes": run.ranks.world,
        "conditions": run.conditions(),
        "versions": versions(),
        "duration_s": round(time.perf_counter() - start, 3),
        "images": data.sizes,
        "validation": {"from": data.val_from, "images": len(data.val)},
        "left_out": left_out,
        "notes": result.notes,
    }
    files.finish_stage(stage, record)
    log.info(
        "%s: %.2f %% deployed, %.3f ms an image",
        name, metric_of(metrics).percent(metrics), metrics["latency_ms_p50"],
    )  # fmt: skip
    if left_out:
        log.info("%s: left out %d layers, named in %s", name, len(left_out), files.STAGE)
    return files.finished_stage(stage, record["key"])


def _is_tried(config: Config) -> bool:
    """Whether the networks of a run are tried before it trains; those of the zoo are known to pass."""
    return bool(config.teacher.factory) or any("/" in name for name in networks(config).values())


def reexport_stage(name: str, stage: Path, done: list[Path], record: dict[str, Any], run: Run) -> dict[str, Any]:
    """Writes and measures a whole stage for other targets, beside its folder, and then puts it in its place.

    What was trained is never at risk: until the very end the old folder is whole.
    """
    anew = stage.with_name(f"{stage.name}.anew")
    files.fresh_folder(anew)
    for kept in (files.MODEL, files.SPEC, files.ONNX, files.OUTPUTS, files.SENSITIVITY, files.SENSITIVITY_PLOT):
        if (stage / kept).is_file():
            shutil.copyfile(stage / kept, anew / kept)
    before = files.read_json(stage / files.METRICS)
    spent = earlier_figures(before, TRACKED) | ({INT8_MACS: before[INT8_MACS]} if INT8_MACS in before else {})
    _deploy(name, anew, done[0] if done else anew, spent, run)
    now = {"config": asdict(run.config), "threads": run.threads, "conditions": run.conditions()}
    files.finish_stage(anew, record | now)
    shutil.rmtree(stage)
    anew.rename(stage)
    return files.finished_stage(stage, record["key"])


def _deploy(name: str, stage: Path, teacher: Path, spent: dict[str, Any], run: Run) -> dict[str, Any]:
    """Writes the further targets of a stage that has its model.onnx, measures all, returns metrics.json's content."""
    config, data = run.config, run.data
    left_out, calibration = {}, None
    targets = [target for target in config.export.targets if target in TARGETS]
    if targets and files.read_json(stage / files.SPEC)["quantization"]:
        samples = data.train.take(config.quantize.calibration_samples, stage_seed(config, name))
        calibration = [images for images, _ in samples.batches()]
    for target in targets:
        source = Source(stage, stage / files.ONNX, restore_float(stage), calibration, data.shape)
        left_out[target] = load_target(target).export(source)
        if left_out[target]:
            log.info("%s: %s leaves out %d layers, named in %s", name, target, len(left_out[target]), files.METRICS)
    folder = StageFolder(stage, teacher, spent, left_out)
    measured = evaluate_stage(folder, data, config.measure, run.device, run.threads)
    write_tensors(stage / files.PREDICTIONS, measured.predictions)
    files.write_json(stage / files.METRICS, measured.metrics)
    files.write_json(stage / files.PROFILE, measured.profile)
    if measured.examples:
        write_tensors(stage / files.EXAMPLES, measured.examples)
    return measured.metrics


def _check_int8(path: Path, result: Artifact, allow_float: bool) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """What no int8 kernel can run, with the reason, and the share that is int8; what was kept in float is float.

    Raises ValueError where the runtime runs another one as float, or one of these as int8, and UserError where most of
    the arithmetic is float without having been asked to be.
    """
    floats = {layer.name for layer in inspect_quantization(path) if not layer.quantized}
    require_quantized(path, tuple(floats))
    chosen = result.spec.quantization["float_layers"]
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
        for operator, count in float_operators(path).items()
    ]
    return rows, {INT8_MACS: share.int8_macs_percent}


def _tell_loss(stage: Path, before: Path, result: Artifact, run: Run) -> None:
    """Where int8 lost accuracy beyond chance, logs and notes which setting would help."""
    loss = validation_loss(before / files.ONNX, stage / files.ONNX, run.data.val, run.threads, TASKS[run.data.task])
    if loss is None:
        return
    images = torch.cat([images for images, _ in run.data.train.take(_SPREAD_IMAGES, 0).batches()])
    advice = advise(restore_float(before), images, run.config.quantize, loss)
    log.warning("quantize: %s", advice)
    result.notes["int8_loss"] = advice


def _write_sensitivity(table: dict[str, Any], stage: Path, curves: TensorBoardWriter) -> None:
    """The table and its chart, into the stage's folder, and its figures into TensorBoard."""
    files.write_json(stage / files.SENSITIVITY, table)
    files.write_bytes(stage / files.SENSITIVITY_PLOT, sensitivity_page(table, stage.name).encode())
    curves.by_layer("int8_kl_nats", (row["kl_nats"] for row in table["layers"]))
