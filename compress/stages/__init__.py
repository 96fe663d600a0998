"""The stages by name: each is a function (artifact, its section of the config, context) -> artifact."""

from compress.errors import UserError
from compress.stages.distill import distill
from compress.stages.prune import prune
from compress.stages.quantize import quantize
from compress.stages.teacher import teacher

STAGES = {"teacher": teacher, "prune": prune, "distill": distill, "quantize": quantize}

_FIRST, _LAST = "teacher", "quantize"  # what others start from; what holds integers, which no other stage can train


def check_order(stages: list[str]) -> None:
    """Raises UserError for a stage that is unknown, repeated or out of place."""
    received = f"stages=[{','.join(stages)}]"
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise UserError(f"{received} with {unknown[0]}", f"names among {', '.join(STAGES)}", "mend that name")
    if len(set(stages)) < len(stages):
        raise UserError(received, "each stage once", "remove the repeated one")
    if not stages or stages[0] != _FIRST:
        raise UserError(received, f"{_FIRST} first: the others start from it", f"put {_FIRST} first")
    if _LAST in stages and stages[-1] != _LAST:
        raise UserError(received, f"{_LAST} last: int8 weights cannot be pruned or trained", f"put {_LAST} last")
