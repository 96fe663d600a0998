"""The stages by name, each with all that the pipeline has to know of it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from compress.config.schema import Config
from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean

StageFunction = Callable[..., Any]  # (artifact, settings, context) -> artifact


@dataclass(frozen=True)
class Stage:
    """A stage; its settings are the section of the config that has its name.

    `run` names the function (artifact, settings, context) -> artifact as "module:function": it is imported when it is
    called, for what it imports takes seconds, which a run that computes nothing does without.
    """

    run: str
    participle: str  # what has become of its network, for messages
    place: Literal["first", "last"] | None = None
    epochs: Callable[[Any], int] = lambda settings: settings.epochs  # of its training; 0: one process computes it
    key: Callable[[Config, tuple[int, int, int]], dict[str, Any]] = lambda config, shape: {}  # what else decides it
    networks: Callable[[Config], dict[str, str]] = lambda config: {}  # names of networks that it builds, by their key
    dry_run: Callable[[int], dict[str, Any]] = lambda images: {}  # its settings for a trial on so many images

    @property
    def module(self) -> str:
        """The full name of the module that it is in."""
        return self.run.partition(":")[0]

    def load(self) -> StageFunction:
        """Its function."""
        module, _, name = self.run.partition(":")
        function: StageFunction = getattr(importlib.import_module(module), name)
        return function


def _teacher_key(config: Config, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The digest of the checkpoint, and of a network of the user's own all that tells it from another."""
    from compress.models.user_model import identity
    from compress.utils.files import digest_of_file

    teacher = config.teacher
    own = {"own": identity(teacher.factory, shape)} if teacher.factory else {}
    return {"checkpoint": digest_of_file(teacher.checkpoint)} | own


def _quantize_key(config: Config, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The kind of CPU that the file is made for."""
    from compress.methods.quantization.cpu_target import choose_target
    from compress.utils.cpu import cpu_flags

    return {"target": choose_target(config.quantize.target, cpu_flags())}


STAGES = {
    "teacher": Stage(
        "compress.stages.teacher:teacher",
        "trained",
        place="first",
        key=_teacher_key,
        networks=lambda config: {} if config.teacher.factory else {"teacher.model": config.teacher.model},
    ),
    "prune": Stage(
        "compress.stages.prune:prune",
        "pruned",
        dry_run=lambda images: {"reconstruction_samples": images},
    ),
    "distill": Stage(
        "compress.stages.distill:distill",
        "distilled",
        networks=lambda config: {"distill.student": config.distill.student} if config.distill.student else {},
    ),
    "quantize": Stage(
        "compress.stages.quantize:quantize",
        "quantized",
        place="last",
        epochs=lambda settings: settings.epochs if settings.mode == "qat" else 0,
        key=_quantize_key,
        dry_run=lambda images: {"calibration_samples": images, "rounding_steps": 1, "max_drop_points": None},
    ),
}


def check_order(stages: list[str]) -> None:
    """Raises UserError for a stage that is unknown, repeated or out of place."""
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
    first = next(name for name, stage in STAGES.items() if stage.place == "first")
    if not stages or stages[0] != first:
        raise UserError(received, f"{first} first: the others start from it", f"put {first} first")
    early = next((name for name in stages[:-1] if STAGES[name].place == "last"), None)
    if early:
        raise UserError(received, f"{early} last: int8 weights cannot be pruned or trained", f"put {early} last")


def networks(config: Config) -> dict[str, str]:
    """The names of all networks that a run builds, by the key that names each."""
    return {key: name for stage in config.stages for key, name in STAGES[stage].networks(config).items()}


def load_stage(name: str) -> StageFunction:
    """The function of a stage."""
    return STAGES[name].load()
