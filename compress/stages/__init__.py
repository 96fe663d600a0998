"""The stages by name: each is a function (artifact, its section of the config, context) -> artifact."""

import importlib
from collections.abc import Callable

from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean

# A stage's name is that of its module here, and of its function there.
STAGES = ("teacher", "prune", "distill", "quantize")

_FIRST, _LAST = "teacher", "quantize"  # what others start from; what holds integers, which no other stage can train


def check_order(stages: list[str]) -> None:
    """Raises UserError for a stage that is unknown, repeated or out of place."""
    received = f"stages=[{','.join(stages)}]"
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise UserError(
            f"{received} with {unknown[0]}",
            f"names among {', '.join(STAGES)}",
            f"{did_you_mean(unknown[0], STAGES)}mend that name",
        )
    if len(set(stages)) < len(stages):
        raise UserError(received, "each stage once", "remove the repeated one")
    if not stages or stages[0] != _FIRST:
        raise UserError(received, f"{_FIRST} first: the others start from it", f"put {_FIRST} first")
    if _LAST in stages and stages[-1] != _LAST:
        raise UserError(received, f"{_LAST} last: int8 weights cannot be pruned or trained", f"put {_LAST} last")


def load_stage(name: str) -> Callable:
    """The function of a stage; what it imports takes seconds, which a run that computes nothing does without."""
    return getattr(importlib.import_module(stage_module(name)), name)


def stage_module(name: str) -> str:
    """The full name of the module that a stage is in."""
    return f"compress.stages.{name}"
