"""The stages by name, each with what the pipeline needs to run it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from compress.config.schema import Config
from compress.config.search_settings import SearchArchitectureConfig
from compress.config.stage_settings import FactorizeConfig, PruneConfig
from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean

StageFunction = Callable[..., Any]  # (artifact, settings, context) -> artifact


@dataclass(frozen=True)
class BuiltNetwork:
    """A network that a stage builds, by the setting `key` and the name that it has there."""

    key: str
    name: str
    image_size: int | None = None  # pixels a side of its input, which the setting `size_key` gives; None: the data's
    size_key: str = "data.image_size"


@dataclass(frozen=True)
class Stage:
    """A stage; its settings are the section of the config that has its name.

    `run` names the function (artifact, settings, context) -> artifact as "module:function". It is imported when it is
    called, because its own imports take seconds, which a run that computes nothing does not need.
    """

    run: str
    participle: str  # the state of its network, for messages: "pruned"
    first: bool = False  # the others start from it
    followed_by: tuple[str, ...] | None = None  # the only stages that may come after it; None: any
    why_last: str = ""  # why no other may
    epochs: Callable[[Any], int] = lambda settings: settings.epochs  # that it trains; 0: it runs in one process
    key: Callable[[Config, tuple[int, int, int]], dict[str, Any]] = lambda config, shape: {}  # what else decides it
    networks: Callable[[Config], list[BuiltNetwork]] = lambda config: []
    # (settings, images) -> the settings that a dry run on so many images changes
    dry_run: Callable[[Any, int], dict[str, Any]] = lambda settings, images: {}
    loads: Callable[[Any], tuple[str, ...]] = lambda settings: ()  # modules that it loads by name and depends on
    # Settings that decide nothing of what it searches, which is kept for other values of these; None: it keeps nothing.
    after_search: tuple[str, ...] | None = None
    extra: tuple[str, str] | None = None  # a package that it needs, and the extra that brings it

    @property
    def module(self) -> str:
        """The full name of its module."""
        return self.run.partition(":")[0]

    def load(self) -> StageFunction:
        """Imports and returns its function."""
        module, _, name = self.run.partition(":")
        function: StageFunction = getattr(importlib.import_module(module), name)
        return function


def _teacher_key(config: Config, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the digests of the checkpoints, and of a network of the user's own."""
    from compress.models.user_model import identity
    from compress.utils.files import digest_of_file

    teacher = config.teacher
    own = {"own": identity(teacher.factory, shape)} if teacher.factory else {}
    backbone = {"backbone": digest_of_file(teacher.backbone_checkpoint)} if teacher.backbone_checkpoint else {}
    return {"checkpoint": digest_of_file(teacher.checkpoint)} | backbone | own


def _student(config: Config) -> list[BuiltNetwork]:
    """Returns the network that takes the place of the one of the stage before, if there is one."""
    distill = config.distill
    if not distill.student:
        return []
    return [
        BuiltNetwork(
            "distill.student", distill.student, distill.student_image_size, size_key="distill.student_image_size"
        )
    ]


def _distill_key(config: Config, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the digests of the teachers' files, where teachers are named; the run's own is in the stage before."""
    if not config.distill.teachers:
        return {}
    from compress.methods.distillation.teacher_files import find_teacher

    return {"teachers": [find_teacher(name).digests() for name in config.distill.teachers]}


def _quantize_key(config: Config, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the kind of CPU that the file is made for."""
    from compress.methods.quantization.cpu_target import choose_target
    from compress.utils.cpu import cpu_flags

    return {"target": choose_target(config.quantize.target, cpu_flags())}


def _prune_dry_run(settings: PruneConfig, images: int) -> dict[str, Any]:
    """Returns settings that need no trained weights: neither accuracy nor sensitivity means anything without."""
    return {
        "target": replace(settings.target, max_drop_points=None),
        "scope": "local" if settings.scope == "sensitivity" else settings.scope,
        "reconstruction_samples": images,
        "sparsity_epochs": 0,
        "steps": 1,
    }


def _factorize_dry_run(settings: FactorizeConfig, images: int) -> dict[str, Any]:
    """Returns settings that need no trained weights: neither accuracy nor sensitivity means anything without."""
    return {
        "target": replace(settings.target, max_drop_points=None),
        "scope": "local",
        "reconstruction_samples": min(settings.reconstruction_samples, images),
    }


def _search_dry_run(settings: SearchArchitectureConfig, images: int) -> dict[str, Any]:
    """Returns settings that need no trained weights: the uniform sub-network is taken without a search."""
    return {
        "target": replace(settings.target, max_drop_points=None),
        "trials": 0,
        "pick": None,
        "reconstruction_samples": min(settings.reconstruction_samples, images),
        "fine_tune_epochs": min(1, settings.fine_tune_epochs),
    }


def _target_key(stage: str) -> Callable[[Config, tuple[int, int, int]], dict[str, Any]]:
    """Returns the key of a stage with a target."""

    def key(config: Config, shape: tuple[int, int, int]) -> dict[str, Any]:
        """Returns the later stages that decide the file, and the machine that runs it, where a target limits them."""
        if not getattr(config, stage).target.asked_of_file():
            return {}
        from compress.utils.cores import cores
        from compress.utils.cpu import cache_bytes, cpu_name

        after = config.stages[config.stages.index(stage) :]
        target = _quantize_key(config, shape)["target"] if "quantize" in after else None
        machine = {"cpu": cpu_name(), "caches": cache_bytes(), "threads": config.threads or cores()}
        return {"file": after, "target": target} | machine

    return key


def _target_loads(settings: Any) -> tuple[str, ...]:
    """Returns what measures the file that ships, where a target limits it."""
    return ("compress.evaluation.shipped_file",) if settings.target.asked_of_file() else ()


STAGES = {
    "teacher": Stage(
        "compress.stages.teacher:teacher",
        "trained",
        first=True,
        key=_teacher_key,
        networks=lambda config: [] if config.teacher.factory else [BuiltNetwork("teacher.model", config.teacher.model)],
    ),
    "prune": Stage(
        "compress.stages.prune:prune",
        "pruned",
        epochs=lambda settings: settings.epochs + settings.sparsity_epochs,
        key=_target_key("prune"),
        dry_run=_prune_dry_run,
        loads=_target_loads,
    ),
    "search_architecture": Stage(
        "compress.stages.search_architecture:search_architecture",
        "searched",
        epochs=lambda settings: settings.epochs + settings.fine_tune_epochs,
        key=_target_key("search_architecture"),
        dry_run=_search_dry_run,
        loads=_target_loads,
        after_search=("pick", "fine_tune_epochs", "distill"),
        extra=("optuna", "search"),
    ),
    "factorize": Stage(
        "compress.stages.factorize:factorize",
        "factorized",
        key=_target_key("factorize"),
        dry_run=_factorize_dry_run,
        loads=_target_loads,
    ),
    "distill": Stage(
        "compress.stages.distill:distill",
        "distilled",
        epochs=lambda settings: settings.rounds * settings.epochs,
        key=_distill_key,
        dry_run=lambda settings, images: {"rounds": 1},
        networks=_student,
    ),
    "early_exit": Stage(
        "compress.stages.early_exit:early_exit",
        "given exits",
        followed_by=("quantize",),
        why_last="its exits and thresholds belong to the layers as they are",
    ),
    "dynamic_width": Stage(
        "compress.stages.dynamic_width:dynamic_width",
        "given several widths",
        followed_by=("quantize",),
        why_last="its narrower networks and thresholds belong to the layers as they are",
    ),
    "quantize": Stage(
        "compress.stages.quantize:quantize",
        "quantized",
        followed_by=(),
        why_last="int8 weights cannot be pruned or trained",
        epochs=lambda settings: settings.epochs if settings.mode == "qat" else 0,
        key=_quantize_key,
        dry_run=lambda settings, images: {"calibration_samples": images, "rounding_steps": 1, "max_drop_points": None},
    ),
}


def check_order(stages: list[str]) -> None:
    """Raises UserError for a stage that is unknown, repeated or out of place, and for one whose package is missing."""
    received = f"stages=[{','.join(stages)}]"
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise UserError(
            f"{received} with {unknown[0]}",
            f"names among {', '.join(STAGES)}",
            f"{did_you_mean(unknown[0], tuple(STAGES))}mend that name",
        )
    if len(set(stages)) < len(stages):
        raise UserError(received, "each stage once", "remove the repeated one")
    first = next(name for name, stage in STAGES.items() if stage.first)
    if not stages or stages[0] != first:
        raise UserError(received, f"{first} first: the others start from it", f"put {first} first")
    for at, name in enumerate(stages):
        allowed, later = STAGES[name].followed_by, stages[at + 1 :]
        if allowed is not None and not set(later) <= set(allowed):
            place = f"before {' and '.join(allowed)} alone" if allowed else "last"
            raise UserError(received, f"{name} {place}: {STAGES[name].why_last}", f"put {name} {place}")
        _require_extra(name)


def _require_extra(name: str) -> None:
    package, extra = STAGES[name].extra or (None, "")
    if package is not None and find_spec(package) is None:
        raise UserError(
            f"stages with {name}, and no package {package}",
            "the extra that brings it",
            f'run pip install -e ".[{extra}]"',
        )


def networks(config: Config) -> list[BuiltNetwork]:
    """Returns all networks that a run builds."""
    return [network for stage in config.stages for network in STAGES[stage].networks(config)]


def load_stage(name: str) -> StageFunction:
    """Imports and returns the function of a stage."""
    return STAGES[name].load()
