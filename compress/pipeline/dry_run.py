"""Takes an untrained network through all stages, to find one that cannot pass before hours of training."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich import get_console
from torch import Tensor, nn

from compress.config.schema import Config
from compress.data.dataset import Data, Split
from compress.evaluation.inference import onnx_runner
from compress.export.file_outputs import FileOutputs
from compress.export.onnx import export_onnx
from compress.methods.quantization.float_share import read_float_share, require_int8
from compress.methods.restore import restore
from compress.models.artifact import Artifact, write_model
from compress.models.from_config import teacher_from_config
from compress.pipeline.compute import shipping_of
from compress.pipeline.dry_run_errors import to_dry_run_error
from compress.stages import STAGES
from compress.tasks import TASKS
from compress.training.context import Context
from compress.training.pseudo_labels import add_pseudo_labels
from compress.training.tensorboard import TensorBoardWriter
from compress.utils.errors import UserError

log = logging.getLogger("compress")

_IMAGES = 16  # for training, calibration and comparison: enough for a step and a graph
_LR = 1e-6  # the step has to run, not to learn
# Tolerated mean differences of logits, as a share of their standard deviation.
_RESTORED = 1e-3  # a rebuilt network differs by the order of its sums
_DEPLOYED = 1e-2  # a float file in ONNX Runtime
_INT8 = 0.3  # an int8 file against its simulation, in which some values are rounded to the next step

T = TypeVar("T")


@dataclass
class _DryRun:
    """The objects that all steps of a dry run share."""

    config: Config
    data: Data  # a few images of each split
    scratch_dir: Path
    model: str
    network: nn.Module  # the teacher before its first epoch
    images: Tensor  # (N, C, H, W)


@dataclass
class DryRunStage:
    """A stage that an untrained network went through."""

    artifact: Artifact
    folder: Path
    stays_float: list[dict[str, str]] = field(default_factory=list)  # {layer, reason} of an int8 file
    warnings: list[str] = field(default_factory=list)  # logged after the dry run, in which the terminal is silent

    @property
    def file(self) -> Path:
        return self.folder / "model.onnx"


def require_compressible(config: Config, data: Data) -> None:
    """Raises UserError where a network cannot pass a stage of `config`, see `try_stages`; otherwise logs the time."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch_dir:
        try_stages(config, data, Path(scratch_dir))
    log.info("tried untrained, through all stages: %.0f s", time.perf_counter() - start)


def try_stages(config: Config, data: Data, scratch_dir: Path) -> list[DryRunStage]:
    """Runs the stages of `config` on a few images, with one training step each, and tests the files of each stage.

    The network of each stage is rebuilt from its files, and its model.onnx is run in ONNX Runtime; both have to agree
    with the network in memory. The files go to folders in `scratch_dir`. Raises UserError with the cause where one of
    these fails, where most of the arithmetic would stay float, and where the network's outputs are not a function of
    the image alone.
    """
    small_data = _small_data(data)
    torch.manual_seed(config.seed)
    network, architecture, _ = teacher_from_config(config.teacher, data.shape, len(data.classes))
    model = architecture.model
    images = torch.cat([images for images, _ in small_data.train.batches()])
    network.eval()
    _require_function(network, images, model)
    done: list[DryRunStage] = []
    with _silent():
        dry_run = _DryRun(config, small_data, scratch_dir, model, network, images)
        try_export(network, small_data, scratch_dir / "untrained.onnx", model)
        for name in config.stages:
            done.append(_try_stage(name, done, dry_run))
    for warning in (warning for tried in done for warning in tried.warnings):
        log.warning("%s", warning)
    return done


def try_export(network: nn.Module, data: Data, file: Path, model: str, branches: bool = False) -> None:
    """Writes the float file and runs it. Raises UserError where `network`, named `model`, cannot be exported."""
    outputs = TASKS[data.task].files
    _attempt(lambda: export_onnx(network, file, data.shape, outputs, branches), model, "exported", network, data)
    images = next(data.train.batches())[0][:_IMAGES]
    with torch.no_grad():
        _compare_file(file, images, _computed(network.eval()(images), outputs), _DEPLOYED, f"{model} as an ONNX file")


def _small_data(data: Data) -> Data:
    """Returns the data set with a few images in train and validation; the test split stays unread."""

    def some(split: Split) -> Split:
        return replace(split.take(_IMAGES, 0), batch_size=min(_IMAGES, split.batch_size))

    return replace(data, train=some(data.train), val=some(data.val), test=some(data.val))


def _require_function(network: nn.Module, images: Tensor, model: str) -> None:
    """Raises UserError unless the outputs for an image are always the same and depend on no other image."""
    with torch.no_grad():
        first, again, half = network(images), network(images), network(images[: len(images) // 2])
    if _difference(again, first) > _RESTORED:
        raise UserError(
            f"{model}, whose outputs for the same images differ from call to call in eval mode",
            "a network that draws no random numbers in eval mode",
            "draw them in train mode only (if self.training), or once, into a buffer",
        )
    if _difference(half, first[: len(half)]) > _DEPLOYED:
        raise UserError(
            f"{model}, whose outputs for an image depend on the other images of its batch in eval mode",
            "a network that treats each image alone",
            "set track_running_stats=True on its batch norms, and reduce over no dimension 0",
        )


def _try_stage(name: str, done: list[DryRunStage], dry_run: _DryRun) -> DryRunStage:
    """Runs a stage as a run would, but on a few images."""
    config, data, stage = dry_run.config, dry_run.data, STAGES[name]
    current, teacher = (restore(done[at].folder, torch.device("cpu")) if done else None for at in (-1, 0))
    if teacher is not None and not data.labelled:
        data = add_pseudo_labels(teacher.network, data, torch.device("cpu"))
    device, curves = torch.device("cpu"), TensorBoardWriter(None)
    shipping = shipping_of(config, torch.get_num_threads())
    context = Context(data, teacher, config.train, device, config.seed, curves, shipping=shipping)
    settings = getattr(config, name)
    quick = {"epochs": min(1, settings.epochs), "lr": _LR} | stage.dry_run(settings, _IMAGES)
    network = dry_run.network if current is None else current.network
    before = dry_run.model if current is None else current.spec.architecture["model"]
    model = next((built.name for built in stage.networks(config)), before)
    artifact = _attempt(
        lambda: stage.load()(current, replace(settings, **quick), context), model, stage.participle, network, data
    )
    tried = DryRunStage(artifact, dry_run.scratch_dir / f"{len(done)}_{name}")
    tried.folder.mkdir()
    write_model(artifact, tried.folder)
    _try_restoring(tried, model, dry_run)
    branches = artifact.spec.exits is not None
    if quantization := artifact.spec.quantization:
        _try_int8(tried, quantization["float_layers"], model, dry_run)
    elif model != before or branches:
        try_export(artifact.network, data, tried.file, model, branches)
    return tried


def _try_restoring(tried: DryRunStage, model: str, dry_run: _DryRun) -> None:
    """Raises UserError unless the network that is rebuilt from its files computes the same."""
    images, network = dry_run.images, tried.artifact.network
    restored = _attempt(
        lambda: restore(tried.folder, torch.device("cpu")).network, model, "restored", network, dry_run.data
    )
    with torch.no_grad():
        found, expected = (_laid_out_plainly(one)(images) for one in (restored, network.eval()))
        if _difference(found, expected) > _RESTORED:
            raise UserError(
                f"{model}, which computes something else after it is rebuilt from model.json and model.safetensors",
                "a network whose parameters and buffers hold all that its results depend on",
                "keep such values in buffers (register_buffer), and draw none when the network is built",
            )


def _try_int8(tried: DryRunStage, float_layers: list[str], model: str, dry_run: _DryRun) -> None:
    """Raises UserError unless the int8 file runs, agrees with the simulation, and is mostly int8."""
    network, file, outputs = tried.artifact.network, tried.file, TASKS[dry_run.data.task].files
    branches = tried.artifact.spec.exits is not None
    _attempt(
        lambda: export_onnx(network, file, dry_run.data.shape, outputs, branches),
        model,
        "quantized",
        network,
        dry_run.data,
    )
    with torch.no_grad():
        expected = _computed(network(dry_run.images), outputs)
        _compare_file(file, dry_run.images, expected, _INT8, f"{model} as an int8 file")
    share = read_float_share(file, network, float_layers)
    require_int8(share, model, dry_run.config.quantize.allow_float)
    tried.stays_float = [{"layer": layer.layer, "reason": layer.reason} for layer in share.layers]
    if remark := share.remark():
        tried.warnings.append(f"quantize: {remark}")


def _computed(output: Tensor, outputs: FileOutputs) -> tuple[Tensor, ...]:
    """Returns what a file makes of a network's output."""
    return (output,) if outputs.compute is None else outputs.compute(output)


def _compare_file(file: Path, images: Tensor, expected: tuple[Tensor, ...], tolerance: float, what: str) -> None:
    """Raises UserError unless the file runs in ONNX Runtime and its outputs are near `expected`."""
    try:
        found = [torch.from_numpy(np.asarray(array)) for array in onnx_runner(file, 1)(images.numpy())]
    except Exception as error:  # the runtime raises many exceptions, whose base class it does not export
        raise UserError(
            f"{what}, which ONNX Runtime refuses: {str(error).strip().splitlines()[0]}",
            "a file that it can run",
            "write that part of the network with other operators",
        ) from error
    if not all(bool(output.isfinite().all()) for output in found):
        raise UserError(
            f"{what}, whose outputs are not finite in ONNX Runtime",
            "finite outputs",
            "look for divisions by zero, logarithms and square roots in its forward pass",
        )
    difference = max(_difference(one, other) for one, other in zip(found, expected, strict=True))
    if difference > tolerance:
        raise UserError(
            f"{what}, whose outputs differ from the network's by {100 * difference:.0f} % of their spread",
            f"at most {100 * tolerance:.0f} %",
            "look for tensors that are written to in place (x[:, 0] = ..., +=) and write them as new tensors",
        )


def _laid_out_plainly(network: nn.Module) -> nn.Module:
    """Returns the network with its tensors as they are in a file.

    Training lays them out as channels_last, where sums have another order: int8 then rounds some to the next step.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def _difference(found: Tensor, expected: Tensor) -> float:
    """Returns the mean difference as a share of the standard deviation of `expected`."""
    spread = expected.float().std().clamp_min(1e-6)
    return ((found.float() - expected.float()).abs().mean() / spread).item()


def _attempt(step: Callable[[], T], model: str, participle: str, network: nn.Module, data: Data) -> T:
    """Returns what `step` returns. Raises a UserError for whatever a library raises: to find it is the purpose."""
    try:
        return step()
    except Exception as error:
        raise to_dry_run_error(error, model, participle, network, data.shape) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Hides all output but warnings."""
    console, level = get_console(), logging.root.manager.disable
    quiet, console.quiet = console.quiet, True
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        console.quiet = quiet
        logging.disable(level)
