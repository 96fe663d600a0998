"""What every process of a run computes: a stage's network, from the folders of the stages before it.

The process of rank 0 decides and writes the files; the others wait in `worker_loop` for their part of the work.
"""

import logging
import random
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.config.schema import Config
from compress.data import load_data
from compress.data.dataset import Data
from compress.evaluation.environment import versions
from compress.export import module_name
from compress.models import require_model_fits
from compress.models.artifact import Artifact
from compress.models.user_model import register_user_model
from compress.pipeline.cache import Cache
from compress.pipeline.code_digest import code_digest
from compress.pipeline.preprocessing import with_normalisation, with_preprocessing
from compress.stages import STAGES, load_stage, networks
from compress.tasks.coco_metrics import require_detection_packages
from compress.training.checkpoint import Checkpoint
from compress.training.context import Context, Shipping
from compress.training.distributed import (
    ProcessGroup,
    StageDone,
    destroy_process_group,
    join,
    receive_broadcast,
    reporting_errors_to_torchrun,
)
from compress.training.precision import choose_precision
from compress.training.tensorboard import TensorBoardWriter
from compress.utils import files
from compress.utils.console import silence
from compress.utils.cores import cores
from compress.utils.cpu import cpu_name
from compress.utils.errors import UserError

# Modules that read and write the files of every stage; the second ones only of stages that have a stage before them.
_READ_AND_WRITE = ("compress.data", "compress.models.artifact", "compress.export.onnx")
_READ_STAGES = ("compress.methods.restore", "compress.training.pseudo_labels")
# Modules that measure a stage; some are loaded by name, so that no import names them.
_MEASURE = ("compress.evaluation.evaluate", "compress.evaluation.benchmark_worker")


@dataclass
class RunContext:
    """The objects that all stages of a run share."""

    config: Config
    data: Data
    device: torch.device
    threads: int
    ranks: ProcessGroup
    cache: Cache | None

    def evaluation_settings(self) -> dict[str, Any]:
        """Returns what the files and figures of a stage depend on in addition to its weights."""
        return {
            "export": asdict(self.config.export),
            "measure": asdict(self.config.measure),
            "threads": self.threads,
            "cpu": cpu_name(),
            "code": code_digest(*measuring_modules(self.config.export.targets)),
        }


@dataclass
class StageJob:
    """A stage to compute; `inputs` come from `stage_inputs`, and their digest is the stage's key."""

    name: str
    stage_dir: Path
    done: list[Path]
    inputs: dict[str, Any]


def prepare(config: Config) -> RunContext:
    """Sets up the machine and reads the data, in every process of the run.

    Raises UserError for a missing device, for data that cannot be used, and for more processes than images in a batch.
    """
    if config.data.task == "detection":
        require_detection_packages()
    device, threads = prepare_machine(config)
    ranks = join(device)
    torch.set_num_threads(threads)
    ranks.broadcast(config)
    config = with_preprocessing(config)
    data = read_data(config)
    if not data.labelled and config.teacher.epochs:
        raise UserError(
            f"train images without labels and teacher.epochs={config.teacher.epochs}",
            "a trained teacher, whose answers stand in for them",
            "set teacher.epochs=0 and teacher.checkpoint=FILE, or give labels",
        )
    _require_weights_fit(config, data)
    require_networks_fit(config, data)
    if ranks.world > data.train.smallest_batch():
        raise UserError(
            f"{ranks.world} processes that share batches of {data.train.smallest_batch()} images",
            "an image for each",
            "raise data.batch_size, or lower torchrun's --nproc-per-node",
        )
    cache = Cache(Path(config.cache.dir)) if config.cache.enabled else None
    return RunContext(config, data, device, threads, ranks, cache)


def read_data(config: Config) -> Data:
    """Returns the data set, normalised as the teacher's weights expect."""
    manifests = Path(config.cache.dir) / "manifests" if config.cache.enabled else None
    return with_normalisation(load_data(config.data, config.seed, manifests), config)


def require_networks_fit(config: Config, data: Data) -> None:
    """Registers the user's own network. Raises UserError for a network that does not fit the images and classes."""
    if config.teacher.factory:
        register_user_model(config.teacher.factory, data.shape, len(data.classes), config.seed, data.task)
    for network in networks(config):
        side = network.image_size or data.shape[1]
        shape = (data.shape[0], side, side)
        require_model_fits(network.name, network.key, shape, len(data.classes), network.size_key)


def _require_weights_fit(config: Config, data: Data) -> None:
    """Raises UserError for class weights of another number of classes than there are."""
    weights = config.train.class_weights
    if isinstance(weights, list) and len(weights) != len(data.classes):
        raise UserError(
            f"train.class_weights with {len(weights)} numbers",
            f"one for each of the {len(data.classes)} classes, in this order: {', '.join(data.classes)}",
            "add or remove weights, or set train.class_weights=balanced",
        )


def prepare_machine(config: Config) -> tuple[torch.device, int]:
    """Sets up torch; returns the device and the number of threads. Raises UserError for a missing GPU."""
    threads = config.threads or cores()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # else denormal weights make the first steps many times slower
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda", "a GPU that torch can use", "set device=auto or device=cpu")
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu"), threads


def compute_stage(job: StageJob, run: RunContext, curves: TensorBoardWriter) -> Artifact:
    """Computes a stage; returns its network with spec and notes.

    Raises UserError where the stage does, Interrupted where a signal ends its training, and StageDone in a process
    that only takes part in the training.
    """
    from compress.methods.restore import restore
    from compress.training.pseudo_labels import (
        add_pseudo_labels,
    )  # imported late: it takes seconds, as `load_stage` does

    config, device = run.config, run.device
    settings = getattr(config, job.name)
    ranks = run.ranks if STAGES[job.name].epochs(settings) else ProcessGroup()
    ranks.broadcast(job)
    with reporting_errors_to_torchrun():
        current = restore(job.done[-1], device) if job.done else None
        teacher = restore(job.done[0], device) if job.done else None
        seed = stage_seed(config, job.name)
        seed_everything(seed)
        key, minutes = files.digest_of(job.inputs), config.train.checkpoint_minutes
        checkpoint = Checkpoint(files.training_file(job.stage_dir), key, minutes)
        data = (
            run.data if teacher is None or run.data.labelled else add_pseudo_labels(teacher.network, run.data, device)
        )
        min_val_metric = getattr(config.stop_below, job.name)
        shipping = shipping_of(config, run.threads)
        context = Context(
            data,
            teacher,
            config.train,
            device,
            seed,
            curves,
            checkpoint,
            ranks,
            min_val_metric=min_val_metric,
            search_dir=search_dir(job, config),
            shipping=shipping,
        )
        result = load_stage(job.name)(current, settings, context)
    result.notes |= context.notes
    if data is not run.data:
        result.notes["labels"] = "the teacher's likeliest class of each train image: they have none of their own"
    return result


def search_dir(job: StageJob, config: Config) -> Path | None:
    """Returns where a stage keeps what it searched: by all that decides it, or beside its folder without a cache.

    None for a stage that keeps nothing.
    """
    later = STAGES[job.name].after_search
    if later is None:
        return None
    if not config.cache.enabled:
        return files.search_folder(job.stage_dir)
    settings = {name: value for name, value in job.inputs["settings"].items() if name not in later}
    return Path(config.cache.dir) / "searches" / files.digest_of(job.inputs | {"settings": settings})


def shipping_of(config: Config, threads: int) -> Shipping:
    """Returns how the run's last file is made and timed."""
    quantize = config.quantize if "quantize" in config.stages else None
    latency_dir = Path(config.cache.dir) / "latency" if config.cache.enabled else None
    return Shipping(quantize, config.measure, threads, latency_dir)


def worker_loop() -> None:
    """Computes the stages that the process of rank 0 broadcasts, until it broadcasts None; writes no file.

    Raises UserError where this process would compute something else than rank 0.
    """
    silence()
    logging.disable(logging.WARNING)  # rank 0 logs them
    run: RunContext | None = None
    while (received := receive_broadcast()) is not None:
        if isinstance(received, Config):
            run = prepare(received)
            continue
        if run is None:
            raise ValueError("received a stage before the config of its run; expected `prepare` to broadcast it first")
        own = stage_inputs(received.name, run, received.inputs["parent"])
        _require_the_same(received.inputs, own, run.ranks.rank)
        with TensorBoardWriter(None) as curves, suppress(StageDone):
            compute_stage(received, run, curves)
    destroy_process_group()


def stage_inputs(name: str, run: RunContext, parent: dict[str, str] | None) -> dict[str, Any]:
    """Returns everything that decides what a stage computes; its digest is the stage's key."""
    config, data = run.config, run.data
    not_data = ("root", "workers")  # the fingerprint identifies the images, wherever they were read
    not_training = "checkpoint_minutes"  # changes nothing that is computed
    precision = {"precision": choose_precision(config.train.precision, run.device)}
    return {
        "stage": name,
        "settings": asdict(getattr(config, name)),
        "train": {key: value for key, value in asdict(config.train).items() if key != not_training} | precision,
        "data": {key: value for key, value in asdict(config.data).items() if key not in not_data},
        "data_fingerprint": data.fingerprint,
        "seed": config.seed,
        "device": run.device.type,
        "parent": parent,
        **STAGES[name].key(config, data.shape),
        "code": code_digest(*computing_modules(name, parent is None, getattr(config, name))),
        "versions": versions(),
    }


def computing_modules(name: str, first: bool, settings: Any) -> tuple[str, ...]:
    """Returns the modules that decide, with their imports, the weights of a stage and its model.onnx."""
    stage = STAGES[name]
    return (stage.module, *stage.loads(settings), *_READ_AND_WRITE, *(() if first else _READ_STAGES))


def measuring_modules(targets: list[str]) -> tuple[str, ...]:
    """Returns the modules that decide, with their imports, the figures of a stage and the files of other targets."""
    return (*_MEASURE, *(module_name(target) for target in targets))


def stage_seed(config: Config, name: str) -> int:
    """Returns a seed for one stage, so that its result does not depend on what ran before it."""
    return zlib.crc32(f"{config.seed} {name}".encode())


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _require_the_same(leaders: dict[str, Any], own: dict[str, Any], rank: int) -> None:
    different = [name for name in leaders if leaders[name] != own[name]]
    if different:
        raise UserError(
            f"process {rank} with other {', '.join(different)} than process 0",
            "the same images, code, libraries and kind of CPU for all that train together",
            "mend that machine, or leave it out",
        )
